"""The keeper: one owner, descriptors by name, and a life that only its owner ends."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest

from sealsvc import keeper as keepers
from sealsvc.errors import Refusal
from sealsvc.keeper import Keeper, KeeperError
from sealsvc.ring_keeper import RingKeeper
from tests.service.conftest import until

CAP_SYS_RESOURCE = 24  # linux/capability.h

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="the gate needs root"),
]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    where = str(tmp_path / "keeper.sock")
    yield where
    try:
        with closing(Keeper(where)) as left:
            left.release()
    except OSError:
        return
    until(lambda: not Path(where).exists())


@pytest.fixture
def keeper(path: str) -> Iterator[Keeper]:
    with closing(keepers.connect(path)) as made:
        made.own()
        yield made


def pid_of(path: str) -> int:
    found = psutil.process_iter(["cmdline"])  # unlike cmdline(), passes over zombies
    return next(p.pid for p in found if path in (p.info["cmdline"] or []))


def refused(call: Callable[[], object], number: int) -> None:
    with pytest.raises(KeeperError) as caught:
        call()
    assert caught.value.errno == number


def test_descriptors_are_found_again_by_the_next_owner(path: str, keeper: Keeper) -> None:
    for n in range(450):  # more than one reply carries
        fd = os.memfd_create("kept")
        os.write(fd, str(n).encode())
        keeper.keep(f"file:{n}", fd)
        os.close(fd)
    keeper.drop("file:7")
    keeper.close()
    with closing(keepers.connect(path)) as second:
        until(lambda: _owns(second))
        kept = second.kept()
        try:
            assert set(kept) == {f"file:{n}" for n in range(450)} - {"file:7"}
            assert os.pread(kept["file:449"], 8, 0) == b"449"
        finally:
            for fd in kept.values():
                os.close(fd)


def _owns(keeper: Keeper) -> bool:
    """The end of the one before is noticed a moment later."""
    try:
        keeper.own()
    except Refusal:
        return False
    return True


def test_a_name_kept_again_is_replaced(keeper: Keeper) -> None:
    for text in (b"first", b"second"):
        fd = os.memfd_create("kept")
        os.write(fd, text)
        keeper.keep("journal", fd)
        os.close(fd)
    kept = keeper.kept()
    assert list(kept) == ["journal"]
    assert os.pread(kept["journal"], 8, 0) == b"second"
    os.close(kept["journal"])


def test_only_the_owner_may_change_anything(path: str, keeper: Keeper) -> None:
    with closing(Keeper(path)) as stranger:
        fd = os.memfd_create("kept")
        refused(lambda: stranger.keep("x", fd), errno.EPERM)
        refused(lambda: stranger.kept(), errno.EPERM)
        refused(lambda: stranger.release(), errno.EBUSY)
        with pytest.raises(Refusal, match="another service owns"):
            stranger.own()
        os.close(fd)


def test_garbage_ends_the_connection_and_nothing_else(path: str, keeper: Keeper) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)
        sock.send(b"garbage")
        assert sock.recv(16) == b""
    assert keeper.kept() == {}


def test_unknown_operations_are_answered(keeper: Keeper) -> None:
    refused(lambda: keeper._call(4711), errno.EOPNOTSUPP)
    assert keeper.kept() == {}


def test_signals_do_not_end_it(path: str, keeper: Keeper) -> None:
    pid = pid_of(path)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(pid, number)
    assert keeper.kept() == {}


def test_memory_pressure_ends_it_last(path: str, keeper: Keeper) -> None:
    effective = int(re.search(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[1], 16)
    if not effective >> CAP_SYS_RESOURCE & 1:
        pytest.skip("lowering oom_score_adj needs CAP_SYS_RESOURCE")
    assert keeper.kept() == {}
    assert Path(f"/proc/{pid_of(path)}/oom_score_adj").read_text().strip() == "-1000"


def test_it_leaves_only_when_nothing_is_kept(path: str, keeper: Keeper) -> None:
    fd = os.memfd_create("kept")
    keeper.keep("journal", fd)
    keeper.keep("lease:1", fd)
    os.close(fd)
    assert not keeper.leave("journal")
    keeper.drop("lease:1")
    assert keeper.leave("journal")
    until(lambda: not Path(path).exists())


def test_watched_files_and_guards_are_found_again(path: str, keeper: Keeper, xfs: Path) -> None:
    if keeper.gate_error():
        pytest.skip("the kernel has no pre-content events")
    file = xfs / "kept"
    file.write_bytes(bytes(4096))
    with file.open("rb") as opened:
        keeper.watch(opened.fileno(), 4096, True)
        st = os.fstat(opened.fileno())
    guard = {"id": 42, "start": 0, "end": 4096, "holder": 0, "exclusive": 0, "policy": 1}
    keeper.guard(st.st_dev, st.st_ino, guard)
    refused(lambda: keeper.unwatch(st.st_dev, st.st_ino), errno.EBUSY)
    assert not keeper.leave("journal"), "a guard is somebody's seal"
    files, guards = keeper.snapshot()
    assert [(f.device, f.inode, f.block_size, f.reflink) for f in files] == [
        (st.st_dev, st.st_ino, 4096, True)
    ]
    assert os.fstat(files[0].fd).st_ino == st.st_ino
    os.close(files[0].fd)
    assert [(g.inode, g.id, g.policy) for g in guards] == [(st.st_ino, 42, 1)]
    keeper.unguard(st.st_dev, st.st_ino, 42)
    keeper.unwatch(st.st_dev, st.st_ino)
    assert keeper.snapshot() == ([], [])


def test_a_socket_of_a_dead_keeper_is_replaced(path: str) -> None:
    with closing(keepers.connect(path)):
        process = psutil.Process(pid_of(path))
        process.kill()
        until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    with closing(keepers.own(path)) as second:
        assert second.kept() == {}


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_descriptors_that_cannot_be_received_are_told_of(keeper: Keeper, spare: int) -> None:
    """The kernel delivers the message all the same; the next is the answer to the next request."""
    with open(os.devnull, "rb") as file:
        for number in range(3):
            keeper.keep(f"kept-{number}", file.fileno())
    rings = RingKeeper(keeper)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(spare):
            os.close(taken.pop())
        refused(keeper.kept, errno.EMFILE)
        if not spare:
            refused(keeper.snapshot, errno.EMFILE)
            refused(rings.list, errno.EMFILE)
        assert keeper.gate_error() == 0
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not rings.list().rings
    found = keeper.kept()
    assert sorted(found) == ["kept-0", "kept-1", "kept-2"]
    for fd in found.values():
        os.close(fd)
