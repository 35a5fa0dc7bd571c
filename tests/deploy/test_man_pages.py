"""The man pages are what the programs say, are well-formed, and their examples work."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.messages import Simulate
from tests.api.running import ROOT, service
from tests.docs.commands import played

sys.path.insert(0, str(ROOT / "deploy"))

from manpages import MAN, PAGES, examples


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_program_says(name: str) -> None:
    assert (MAN / name).read_text() == PAGES[name](), "run: python deploy/manpages.py"


@pytest.mark.skipif(not shutil.which("groff"), reason="no groff")
@pytest.mark.parametrize("name", PAGES)
def test_groff_has_nothing_to_say(name: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", MAN / name], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("man")
    config = directory / "sealsvc.toml"
    config.write_text(f'[registry]\ndirectory = "{directory}/registry"\n')
    with service(directory, "--sim", "--config", str(config)):
        yield str(directory / "control.sock")


# Examples that need what a simulation has not: maps and doctors of real files, a claim's command.
ELSEWHERE = {"map", "doctor", "redeem"}
# They end when told so.
ENDLESS = {"watch", "top"}


def lines() -> list[tuple[str, str]]:
    from sealsvc.cli.sealctl import sealctl

    return [
        (name, line)
        for name in sealctl.commands
        if name not in ELSEWHERE
        for line in examples(name)
        if line.strip().startswith("sealctl")
    ]


@pytest.mark.parametrize(("name", "line"), lines(), ids=[line for _, line in lines()])
def test_the_example_works(socket: str, tmp_path: Path, name: str, line: str) -> None:
    """On a simulated file system, with the file, the seal and the holder that it speaks of."""
    file = f"/sim/{tmp_path.name}"
    with Client(socket) as client:
        client.call(Simulate, action="create", path=file, size=4 << 20)
        held = client.grant(path=file, kind="shared", ttl=600.0, length=2 << 20)
        os.close(held.fds[0])
        other = client.grant(path=file, kind="shared", length=4096)
        os.close(other.fds[0])
        names = [
            ("/pmem/db", file),
            ("/pmem", "/sim"),
            ("5f1e...", held.seal.id),
            ("5f1e", held.seal.id),
            ("60aa", other.seal.id),
            ("4711", str(os.getpid())),
            ("./server", "true"),
            ("./my-server", "my-server"),
            ("/usr/share/bash-completion/completions/sealctl", shlex.quote(str(tmp_path / "s"))),
            ("~/.config/fish/completions/sealctl.fish", shlex.quote(str(tmp_path / "f"))),
        ]
        if name in ("validate", "hold"):
            client.call(Simulate, action="map", path=file, pid=os.getpid())
        if name == "recall":
            # Nobody listens here, and nobody waits.
            names.append(("--wait", ""))
        command = line.split("  #")[0].split(" #")[0]
        limit = 3 if name in ENDLESS else 20
        variables = {"SEALSVC_SOCKET": socket, "SEALSVC_SEAL": held.seal.id}
        for _ in range(20):
            done = played(command, tmp_path, names, limit, **variables)
            # The registry writes when there is time for it.
            if (name, done.returncode) not in {("history", 4), ("changes", 4)}:
                break
            time.sleep(0.2)
    told = done.stdout + done.stderr
    # Understood is what counts where the simulation has another answer than a real file system.
    assert done.returncode != 2, told
    assert "Usage:" not in told
    assert "Traceback" not in told
    if name not in ("hold", "validate", "return", "downgrade", *ENDLESS):
        assert done.returncode == 0, told
