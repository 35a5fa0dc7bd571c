"""The man pages are what the programs say, are well-formed, and their examples work."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import TABLE
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Simulate
from tests.api.running import ROOT, service
from tests.docs.commands import played

sys.path.insert(0, str(ROOT / "deploy"))

from manpages import MAN, PAGES, examples

LIBSEAL = ROOT / "native" / "libseal" / "libseal.3"
BY_HAND = [MAN / "nbdkit-sealsvc-plugin.1", MAN / "sealsvc-tcmu.8", LIBSEAL]


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_what_the_program_says(name: str) -> None:
    assert (MAN / name).read_text() == PAGES[name](), "run: python deploy/manpages.py"


@pytest.mark.skipif(not shutil.which("mandoc"), reason="there is no mandoc")
@pytest.mark.parametrize("page", [*(MAN / name for name in PAGES), *BY_HAND], ids=lambda p: p.name)
def test_it_is_well_formed(page: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", page], capture_output=True, text=True, timeout=60
    )
    # A generated page has no date: it would be another with each build.
    assert not [line for line in done.stdout.splitlines() if "missing date" not in line]


def test_sealctl_has_every_exit_status() -> None:
    listed = PAGES["sealctl.1"]().partition(".SH EXIT STATUS\n")[2].partition(".SH")[0]
    assert {str(row.exit) for row in TABLE.values()} <= set(re.findall(r"\d+", listed))


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("man")
    config = directory / "sealsvc.toml"
    config.write_text(f'[registry]\ndirectory = "{directory}/registry"\n')
    with service(directory, "--sim", "--config", str(config)):
        yield str(directory / "control.sock")


# Examples that need what a simulation has not: maps, copies, tags and doctors of real files, a
# claim's command, devices.
ELSEWHERE = {"map", "doctor", "redeem", "export", "copy", "pi", "relocate"}
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
        limit = 3 if name in ENDLESS else 110
        variables = {"SEALSVC_SOCKET": socket, "SEALSVC_SEAL": held.seal.id}
        for _ in range(100):
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


def _serving(directory: Path, root: Path) -> list[str]:
    """The risks are accepted: of a process in a chroot, such as the browser of another test, the
    service does not see all mounts, so that any file may be below an overlay there."""
    config = directory / "sealsvc.toml"
    config.write_text(f'[policy]\nroots = ["{root}"]\naccept_risks = ["all"]\n')
    return ["--config", str(config)]


@pytest.mark.kernel
@pytest.mark.parametrize("line", examples("map"))
def test_the_map_of_a_real_file(xfs: Path, tmp_path: Path, line: str) -> None:
    if "jq" in line and not shutil.which("jq"):
        pytest.skip("there is no jq")
    file = xfs / f"man-{os.getpid()}"
    file.write_bytes(os.urandom(1 << 20))
    os.sync()
    sealctl = f"{sys.executable} -m sealsvc.cli.sealctl"
    with service(tmp_path, *_serving(tmp_path, xfs)):
        done = subprocess.run(
            ["bash", "-c", line.replace("/pmem/db", str(file)).replace("sealctl", sealctl)],
            cwd=ROOT,
            env={**os.environ, "SEALSVC_SOCKET": str(tmp_path / "control.sock")},
            capture_output=True,
            text=True,
            timeout=60,
        )
    file.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.kernel
def test_the_copies_of_real_files(xfs: Path, tmp_path: Path) -> None:
    for name in ("db", "x", "y"):
        (xfs / name).write_bytes(os.urandom(16 << 20))
    with service(tmp_path, *_serving(tmp_path, xfs)):
        for line in examples("copy"):
            done = played(
                line.split("  #")[0], tmp_path, [("/mnt/a", str(xfs))], 60, **_socket(tmp_path)
            )
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    assert (xfs / "db.new").read_bytes() == (xfs / "db").read_bytes()
    assert (xfs / "x").read_bytes() == (xfs / "y").read_bytes()


@pytest.mark.kernel
def test_the_relocations_of_a_real_file(xfs: Path, tmp_path: Path) -> None:
    data = os.urandom(16 << 20)
    (xfs / "db").write_bytes(data)
    (xfs / "fast").mkdir(exist_ok=True)
    with service(tmp_path, *_serving(tmp_path, xfs)):
        for line in examples("relocate"):
            done = played(
                line.split("  #")[0], tmp_path, [("/mnt/a", str(xfs))], 60, **_socket(tmp_path)
            )
            better = done.returncode == 0 or "not moved" in done.stderr or "moved" in done.stdout
            assert better, f"{line}: {done.stdout}{done.stderr}"
    assert (xfs / "db").read_bytes() == data


@pytest.mark.kernel
def test_protection_information_of_a_real_file(xfs: Path, tmp_path: Path) -> None:
    file = xfs / "tagged"
    file.write_bytes(os.urandom(1 << 20))
    names = [("/mnt/pmem/db", str(file)), ("--wait 1m", "--wait 1s")]
    with (
        service(tmp_path, *_serving(tmp_path, xfs)),
        Client(str(tmp_path / "control.sock")) as client,
    ):
        held = client.grant(path=str(file), kind="exclusive", iomode="read")
        os.close(held.fds[0])
        said = ""
        for line in examples("pi"):
            ids = [("SEAL", held.seal.id), ("ID", held.seal.id)]
            done = played(line, tmp_path, [*names, *ids], 60, **_socket(tmp_path))
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            said += done.stdout
        assert "as it was tagged" in said
        client.call(Return, seal=held.seal.id)


def _socket(directory: Path) -> dict[str, str]:
    return {"SEALSVC_SOCKET": str(directory / "control.sock")}
