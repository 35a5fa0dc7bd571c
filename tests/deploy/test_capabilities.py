"""The service with the capabilities of its unit: all that it does works, and none is too many."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket as sockets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Return, Show
from sealsvc.protocol.system import ServiceStatus, Status
from sealsvc.runtime.config import ServiceSection
from sealsvc.service.release import release
from tests.lab.pmem import mounted_dax
from tests.service import conftest
from tests.support.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "sealsvc.service"
NOBODY = 65534
MiB = 1 << 20
# For what a service does that is up, and what one without a capability leaves undone. It starts and
# ends in conftest's: in the lab, on processors that others use, a start takes half a minute.


def bounding_set() -> list[str]:
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    return [name.removeprefix("CAP_").lower() for line in lines for name in line.split()]


def ours() -> int:
    """What this process has, which may be less than everything: in a container, say."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    assert found
    return int(found[1], 16)


CAP_SYS_RESOURCE = 1 << 24
NEEDED = bounding_set()

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no setpriv"),
]

# A process of another user that has mapped a file of its own, and holds on to it. (It opens the
# file while it can still walk there.)
HOLDER = """
import mmap, os, signal, sys
fd = os.open(sys.argv[1], os.O_RDWR)
mapping = mmap.mmap(fd, 0)
mapping[:1] = b"x"
os.close(fd)
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("mapped", flush=True)
while True:
    signal.pause()
"""


@contextmanager
def serving(
    directory: Path, root: Path, capabilities: list[str], use: str, *under: str
) -> Iterator[Path]:
    """The service with these capabilities and no others, as its unit would start it."""
    socket, config, log = directory / "control.sock", directory / "toml", directory / "log"
    config.write_text(
        f'[service]\nsocket = "{socket}"\n[policy]\nroots = ["{root}"]\naccept_risks = ["all"]\n'
        f"[enforcers]\nuse = {use}\nlinger = 0.1\n[fence]\nsignal_grace = 0.2\n"
    )
    bound = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    command = [*under, "setpriv", "--bounding-set", bound, "--no-new-privs", sys.executable, "-m"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "sealsvc.cli.service", "serve", "--config", config],
            cwd=ROOT,
            stderr=out,
            env={k: v for k, v in os.environ.items() if k != "SEALSVC_SOCKET"},
        )
    try:
        until(lambda: process.poll() is not None or answers(socket), what="the service")
        assert process.poll() is None, log.read_text()
        yield socket
    finally:
        process.terminate()
        process.wait(conftest.PATIENCE)
        release(ServiceSection(socket=str(socket)))
        until(lambda: not (directory / "keeper.sock").exists(), what="the keeper's end")


def answers(socket: Path) -> bool:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(str(socket)) == 0


@contextmanager
def holding(file: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(file), str(NOBODY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "mapped\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def private(xfs: Path) -> Iterator[Path]:
    """A file of another user that nobody else may look at."""
    home = xfs / f"home-{os.getpid()}"
    home.mkdir()
    file = home / "file"
    file.write_bytes(os.urandom(4 * MiB))
    sparse = home / "sparse"
    sparse.touch()
    os.truncate(sparse, 4 * MiB)
    for path, mode in ((file, 0o600), (sparse, 0o600), (home, 0o700)):
        os.chmod(path, mode)
        os.chown(path, NOBODY, NOBODY)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    yield file
    shutil.rmtree(home)


def shared_life(directory: Path, file: Path, capabilities: list[str], *under: str) -> None:
    """A seal on another user's file, for another user's process: granted, proven, in conflict, and
    its holder fenced. Raises whatever does not work."""
    with (
        serving(directory, file.parents[1], capabilities, '["fanotify"]', *under) as socket,
        holding(file) as holder,
        Client(str(socket), timeout=PATIENCE) as client,
    ):
        if ours() & CAP_SYS_RESOURCE:
            kept_to_the_end(directory)
        reply = client.grant(
            path=str(file),
            kind="shared",
            holder={"pid": holder.pid},
            fence="kill",
            grace=0.3,
        )
        for fd in reply.fds:
            os.close(fd)
        assert client.validate(reply.seal.id).vmas == 1
        intruder = threading.Thread(target=os.truncate, args=(file, MiB), daemon=True)
        intruder.start()
        until(lambda: holder.poll() is not None, PATIENCE, "the fence")
        intruder.join(PATIENCE)
        assert not intruder.is_alive()
        assert client.call(Show, seal=reply.seal.id).seal.state == "revoked"


def exclusive_life(directory: Path, file: Path, capabilities: list[str]) -> None:
    """A file that is prepared from nothing, and sealed by a lease: both are its owner's to do."""
    sparse = file.with_name("sparse")
    with (
        serving(directory, file.parents[1], capabilities, '["lease"]') as socket,
        Client(str(socket), timeout=PATIENCE) as client,
    ):
        reply = client.grant(
            path=str(sparse),
            kind="exclusive",
            fence="kill",
            prepare=["allocate", "convert", "align"],
        )
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)


def kept_to_the_end(directory: Path) -> None:
    """The keeper is the last that memory pressure ends."""
    socket = str(directory / "keeper.sock")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if socket in process.joinpath("cmdline").read_text():
                score = process.joinpath("oom_score_adj").read_text()
                assert score == "-1000\n", "oom_score_adj"
                return
        except (FileNotFoundError, ProcessLookupError):
            continue
    raise AssertionError("there is no keeper")


def lives(directory: Path, file: Path, capabilities: list[str]) -> None:
    for life in (shared_life, exclusive_life):
        place = directory / life.__name__
        place.mkdir()
        life(place, file, capabilities)


def test_the_docs_name_them() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    table = re.findall(r"^\| `([A-Z_]+)` \|", text, re.MULTILINE)
    given = re.search(r"--cap-add ([A-Z_,]+)", text)
    assert given
    assert [name.lower() for name in table] == NEEDED
    assert given[1].lower().split(",") == NEEDED


# What is refused without each.
MISSED = {
    "sys_admin": "fanotify_init",
    "dac_override": "open of .*: Permission denied",
    "sys_ptrace": "namespaces of the process that connected cannot be told",
    "kill": "the fence never came true",
    "fowner": "Operation not permitted",
    "lease": "F_SETLEASE",
    "sys_resource": "oom_score_adj",
}


def test_they_suffice(tmp_path: Path, private: Path) -> None:
    lives(tmp_path, private, NEEDED)


def test_they_suffice_in_a_container_s_namespaces(tmp_path: Path, private: Path) -> None:
    """As docs/deploy.md has it: mounts of its own that hear of the host's, no network, and the
    host's processes. What the host unmounts meanwhile is gone there, too."""
    namespaces = ["unshare", "--mount", "--propagation", "slave", "--net", "--ipc", "--uts"]
    shared_life(tmp_path, private, NEEDED, *namespaces)
    shared = tmp_path / "shared"
    other = shared / "other"
    shared.mkdir()
    mount("-t", "tmpfs", "tmpfs", shared)
    try:
        mount("--make-shared", shared)
        other.mkdir()
        mount("-t", "tmpfs", "tmpfs", other)
        with (
            serving(tmp_path, private.parents[1], NEEDED, '["fanotify"]', *namespaces) as socket,
            Client(str(socket), timeout=PATIENCE) as client,
        ):
            status = client.call(Status).result
            assert isinstance(status, ServiceStatus)
            seen = Path(f"/proc/{status.pid}/mountinfo")
            assert str(other) in seen.read_text()
            subprocess.run(["umount", other], check=True, timeout=60)
            assert str(other) not in seen.read_text()
    finally:
        subprocess.run(["umount", "--recursive", shared], check=True, timeout=60)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=60)


def test_they_suffice_for_rings(tmp_path: Path, private: Path) -> None:
    """(tests/deploy/test_systemd.py has them under the unit's filter of system calls.)"""
    with (
        serving(tmp_path, private.parents[1], NEEDED, '["fanotify"]') as socket,
        RingClient(str(socket), timeout=PATIENCE) as client,
        private.open("r+b") as opened,
    ):
        seal = client.grant(client.register(opened.fileno()), 0, 4096)
        assert seal.valid
        # Another process: what a holder does itself is its own business.
        intruder = subprocess.Popen(["truncate", "--size", "0", private])
        until(lambda: any(news.kind == "recall" for news in client.dispatch()), PATIENCE)
        assert not seal.valid
        seal.refresh()
        seal.give_back()
        assert intruder.wait(PATIENCE) == 0


@pytest.mark.lab
def test_they_suffice_for_bpf(tmp_path: Path) -> None:
    """Programs are loaded, attached and pinned, and refuse."""
    with (
        mounted_dax("xfs") as root,
        serving(tmp_path, root, NEEDED, '["bpf"]') as socket,
        Client(str(socket), timeout=conftest.PATIENCE) as client,
    ):
        kept_to_the_end(tmp_path)
        file = root / "file"
        file.write_bytes(os.urandom(MiB))
        reply = client.grant(path=str(file), kind="shared", conflict="refuse")
        with pytest.raises(OSError, match=os.strerror(errno.ETXTBSY)):
            os.truncate(file, 4096)
        os.close(reply.fds[0])
        client.call(Return, seal=reply.seal.id)
        os.truncate(file, 4096)


@pytest.mark.parametrize("name", NEEDED)
def test_each_is_needed(tmp_path: Path, private: Path, name: str) -> None:
    if name == "sys_resource" and not ours() & CAP_SYS_RESOURCE:
        pytest.skip("this machine's root has no CAP_SYS_RESOURCE to give away")
    fewer = [other for other in NEEDED if other != name]
    with pytest.raises((AssertionError, Refusal), match=MISSED[name]):
        lives(tmp_path, private, fewer)
