"""systemd's own judgement of the units."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from api.principals import Entry, read

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"

pytestmark = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")

# What systemd-analyze(1) calls exposure, from 0 to 10; the service and its keeper must share the
# host's mount namespace, which costs most of theirs.
EXPOSURE = {"sealsvc.service": 5.0, "sealsvc-keeper.service": 5.0, "sealsvc-api.service": 1.5}


@pytest.mark.parametrize("name", EXPOSURE)
def test_exposure(name: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", UNITS / name],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE[name]


def test_nothing_gives_the_service_a_mount_namespace() -> None:
    """Descriptors of clients would be of mounts that it cannot see."""
    text = (UNITS / "sealsvc.service").read_text()
    for directive in ("Protect", "PrivateTmp", "PrivateDevices", "ReadWritePaths", "BindPaths"):
        assert not re.search(rf"^{directive}\w*=", text, re.M), directive


def test_the_example_of_principals_is_one(tmp_path: Path) -> None:
    """With its examples uncommented; as it is, nobody is known."""
    example = UNITS.parent / "principals.toml"
    path = tmp_path / "principals.toml"
    path.write_text(example.read_text())
    path.chmod(0o640)
    assert list(read(path)) == []
    lines = example.read_text().splitlines()
    begun = next(n for n, line in enumerate(lines) if line.startswith("# [principal.mon"))
    path.write_text("\n".join(line.removeprefix("# ").strip("#") for line in lines[begun:]))
    known = {caller.name: caller for caller in read(path)}
    assert known["monitoring"].below is None
    assert (known["storage-team"].below, known["storage-team"].holders) == (("/srv/pmem",), None)
    keys = set(re.findall(r"^# ([a-z_]+(?:, [a-z_]+)?)  +\S", example.read_text(), re.M))
    documented = {key for row in keys for key in row.split(", ")}
    assert documented == {field.name for field in msgspec.structs.fields(Entry)}
