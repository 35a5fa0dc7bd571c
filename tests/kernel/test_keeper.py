"""The keeper: one owner, descriptors by name, and a life that only its owner ends."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from sealsvc.core.errors import Refusal
from sealsvc.enforce import keeper_start as keepers
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.enforce.keeper_watch import KeeperWatch
from sealsvc.linux.native import ffi, lib
from sealsvc.rings.keeper import RingKeeper
from tests.support.waiting import until

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
    refused(lambda: keeper.call(4711), errno.EOPNOTSUPP)
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


# Kin find each other


def keepers_of(path: str) -> list[int]:
    found = psutil.process_iter(["pid", "cmdline"])
    return [p.info["pid"] for p in found if path in (p.info["cmdline"] or [])]


def test_it_is_found_again_although_its_socket_was_unlinked(path: str, keeper: Keeper) -> None:
    before = keepers_of(path)
    with open(__file__, "rb") as file:
        keeper.keep("one", file.fileno())
    keeper.close()
    os.unlink(path)
    with closing(keepers.own(path)) as again:
        kept = again.kept()
        os.close(kept.pop("one"))
        assert not kept
        assert keepers_of(path) == before
        done = subprocess.run(
            [keepers._program(), path, keepers.name_of(path)], capture_output=True, check=False
        )
        assert done.returncode == 1
        assert b"in use" in done.stderr
    assert keepers.release_all(path)
    until(lambda: not keepers_of(path))


SQUAT = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
taken = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
taken.bind("\\0" + sys.argv[1])
taken.listen(9)
print("taken", flush=True)
input()
"""


def test_a_user_that_takes_its_name_keeps_it_from_nothing(path: str) -> None:
    name = keepers.name_of(path)
    squatter = subprocess.Popen(
        [sys.executable, "-c", SQUAT, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert squatter.stdout is not None
        assert squatter.stdout.readline() == b"taken\n"
        with closing(keepers.own(path)) as made:
            there = made.greet()
            assert there is not None
            assert [there.pid] == keepers_of(path)
    finally:
        squatter.communicate(b"\n")


# Versions


@contextmanager
def answering(path: str, answer: Callable[[int], tuple[int, int] | None]) -> Iterator[None]:
    """Something that listens as a keeper: for an operation of a hello it gives result and version,
    or hangs up. It ends when it gives the result 1."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(9)

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    while asked := connection.recv(65536):
                        if len(asked) != ffi.sizeof("struct keeper_hello"):
                            break
                        told = answer(int.from_bytes(asked[:4], sys.byteorder))
                        if told is None:
                            break
                        greeting = {"result": told[0], "version": told[1], "pid": 4711}
                        made = ffi.new("struct keeper_greeting *", greeting)
                        if told[0] == 1:
                            listener.close()
                            os.unlink(path)
                        connection.send(ffi.buffer(made))
                        if told[0] == 1:
                            return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        with suppress(FileNotFoundError):
            os.unlink(path)


def test_one_of_another_version_that_keeps_seals_is_told_of(path: str) -> None:
    with answering(path, lambda op: (0, 99)), pytest.raises(Refusal) as refused:
        keepers.own(path)
    assert "process 4711 of version 99" in refused.value.message
    assert "release --all" in refused.value.message


def test_one_of_another_version_that_keeps_nothing_is_replaced(path: str) -> None:
    with (
        answering(path, lambda op: (int(op == lib.KEEPER_HELLO_LEAVE), 99)),
        closing(keepers.own(path)) as made,
    ):
        there = made.greet()
        assert there is not None
        assert there.version == lib.KEEPER_VERSION


def test_what_does_not_understand_was_not_released(path: str) -> None:
    with answering(path, lambda _: None), pytest.raises(Refusal, match="nothing was released"):
        keepers.release_all(path)
    with answering(path, lambda _: None), pytest.raises(Refusal, match="of a version before 5"):
        keepers.own(path)


def test_release_says_whether_there_was_one(path: str) -> None:
    assert not keepers.release_all(path)
    keepers.own(path).close()
    with closing(keepers.own(path)), pytest.raises(KeeperError):
        keepers.release_all(path)
    assert keepers.release_all(path)
    assert not keepers_of(path)


# One that does not answer


def test_one_that_is_stopped_is_noticed(
    path: str, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealsvc.enforce.keeper_watch._PAUSE", 0.05)
    monkeypatch.setattr("sealsvc.enforce.keeper_watch._PATIENCE", 2.0)
    told: list[str] = []
    watch = KeeperWatch(path, told.append)
    watch.start()
    (pid,) = keepers_of(path)
    watch.refuse()
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: bool(told))
        assert f"process {pid}" in told[0]
        with pytest.raises(Refusal, match="try-later"):
            watch.refuse()
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: told[-1] == "")
    watch.refuse()
    watch.stop()
    assert keeper.greet() is not None
