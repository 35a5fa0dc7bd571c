"""The container image: built, and run with the privileges that docs/deploy.md gives it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

NOT_RUN = 77

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        not (shutil.which("podman") and shutil.which("mmdebstrap")),
        reason="needs podman and mmdebstrap",
    ),
]


def test_the_image_lives_by_the_documented_commands(package: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("container-life")
    namespaces = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
    done = subprocess.run(
        [*namespaces, script, tmp_path, package],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={k: v for k, v in os.environ.items() if not k.startswith("SEALSVC_")},
        text=True,
        timeout=1400,
        check=False,
    )
    print(done.stdout)
    if done.returncode == NOT_RUN:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("container-life: done\n")
