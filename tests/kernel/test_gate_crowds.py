"""The gate when very many wait, when descriptors are few, when its owner does not read, and when a
task that it looks at does not let itself be looked at."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from sealsvc.enforce import keeper_start as keepers
from sealsvc.enforce.keeper import Keeper
from tests.support.waiting import PATIENCE, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(os.geteuid() != 0, reason="the gate needs root"),
]

# THREADS of them cut FILE to its own size at once, and say how often it ended how.
CROWD = """
import collections, os, sys, threading
threading.stack_size(65536)
ends = collections.Counter()
def cut():
    try:
        os.truncate(sys.argv[1], 0)
    except OSError as error:
        ends[error.errno] += 1
    else:
        ends[0] += 1
threads = [threading.Thread(target=cut) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
print("started", flush=True)
for thread in threads:
    thread.join()
print(dict(ends), flush=True)
"""
GUARD = {"id": 7, "start": 0, "end": 1 << 20, "holder": 0, "exclusive": 0, "watch": 0, "backed": 0}
WAIT = 1


class Watched:
    def __init__(self, keeper: Keeper, path: Path) -> None:
        self.keeper, self.path = keeper, path
        path.write_bytes(bytes(1 << 16))
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        keeper.arm(self.fd)
        keeper.watch(self.fd, 4096, False)
        st = os.fstat(self.fd)
        self.key = (st.st_dev, st.st_ino)

    def close(self) -> None:
        self.keeper.unguard(*self.key, GUARD["id"])
        until(lambda: not self.keeper.in_flight(*self.key))
        self.keeper.unwatch(*self.key)
        os.close(self.fd)
        self.path.unlink()


@contextmanager
def keeping(path: Path, descriptors: int = 0) -> Iterator[Keeper]:
    """A keeper of its own, with a limit of descriptors."""
    if descriptors:
        limits = (descriptors, descriptors)
        subprocess.run(
            [keepers._program(), path],
            check=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        )
    with closing(keepers.connect(str(path))) as keeper:
        keeper.own()
        try:
            yield keeper
        finally:
            keeper.release()
    until(lambda: not path.exists())


@contextmanager
def crowd(path: Path, threads: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CROWD, str(path), str(threads)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def waiting(keeper: Keeper) -> int:
    return keeper.counters()["waiters"]


def reads(path: Path) -> None:
    command = ["head", "-c", "1", path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)


def test_a_crowd_waits_and_goes_on_and_bystanders_do_not_notice(fs: Path, tmp_path: Path) -> None:
    """More than fit into one fanotify group, so that the file moves to others while they come."""
    with ExitStack() as stack:
        keeper = stack.enter_context(keeping(tmp_path / "keeper.sock"))
        other, file = (
            stack.enter_context(closing(Watched(keeper, fs / name))) for name in ("other", "crowd")
        )
        keeper.guard(*file.key, {**GUARD, "policy": WAIT})
        process = stack.enter_context(crowd(file.path, 700))
        until(lambda: waiting(keeper) == 700)
        reads(other.path)
        assert waiting(keeper) == 700, "the bystander did not wait for them"
        keeper.unguard(*file.key, GUARD["id"])
        assert process.communicate(timeout=PATIENCE)[0] == "{0: 700}\n"
        assert waiting(keeper) == 0
        assert keeper.counters()["failed_answers"] == 0


def test_waiters_leave_descriptors_for_others(fs: Path, tmp_path: Path) -> None:
    """The kernel answers EPERM to whoever it has no descriptor for: that must never be needed."""
    with ExitStack() as stack:
        keeper = stack.enter_context(keeping(tmp_path / "keeper.sock", descriptors=256))
        other, file = (
            stack.enter_context(closing(Watched(keeper, fs / name))) for name in ("other", "crowd")
        )
        keeper.guard(*file.key, {**GUARD, "policy": WAIT})
        process = stack.enter_context(crowd(file.path, 200))
        until(lambda: waiting(keeper) + keeper.counters()["crowded"] == 200)
        for _ in range(5):
            reads(other.path)
        held = waiting(keeper)
        assert 0 < held < 200
        keeper.unguard(*file.key, GUARD["id"])
        ends = process.communicate(timeout=PATIENCE)[0]
        assert ends.count(":") == 2
        assert f"{errno.EAGAIN}: {200 - held}" in ends
        assert f"0: {held}" in ends


def test_those_that_came_and_went_unheard_are_not_kept(fs: Path, tmp_path: Path) -> None:
    """Nobody reads the reports meanwhile."""
    with ExitStack() as stack:
        keeper = stack.enter_context(keeping(tmp_path / "keeper.sock"))
        file = stack.enter_context(closing(Watched(keeper, fs / "crowd")))
        keeper.guard(*file.key, {**GUARD, "policy": WAIT})
        for _ in range(12):
            with crowd(file.path, 200):
                until(lambda: waiting(keeper) == 200)
            until(lambda: waiting(keeper) == 0)
        found = 0
        while some := len(list(keeper.read_reports(1.0))):
            found += some
        # What fits into the socket's buffer, and what was held at the end.
        assert 0 < found < 1500


@pytest.mark.parametrize("threads", [1, 300])
def test_a_keeper_that_is_killed_lets_whoever_waits_go_on(
    fs: Path, tmp_path: Path, threads: int
) -> None:
    """The waiters of one group hold marks of others: were these released first, all would wait for
    ever."""
    with closing(keepers.connect(str(tmp_path / "keeper.sock"))) as keeper:
        greeting = keeper.greet()
        assert greeting is not None
        keeper.own()
        file = Watched(keeper, fs / "crowd")
        keeper.guard(*file.key, {**GUARD, "policy": WAIT})
        with crowd(file.path, threads) as process:
            until(lambda: waiting(keeper) == threads)
            os.kill(greeting.pid, signal.SIGKILL)
            assert process.communicate(timeout=120)[0] == f"{{0: {threads}}}\n"
        os.close(file.fd)
        file.path.unlink()


class UnansweredFlush:
    """A FUSE file system that is one file, and whose server never answers FLUSH (fuse(4))."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="sealsvc-fuse-")
        self.path = Path(self.directory.name, "file")
        self.path.touch()
        self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        self.flushed = threading.Event()
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.device},rootmode=100644,user_id=0,group_id=0,allow_other"
        if libc.mount(b"test", bytes(self.path), b"fuse", 0, options.encode()):
            os.close(self.device)
            pytest.skip("FUSE cannot be mounted")
        self.umount2 = libc.umount2
        self.server = threading.Thread(target=self._serve)
        self.server.start()

    def close(self) -> None:
        self.umount2(bytes(self.path), 1 | 2)  # MNT_FORCE | MNT_DETACH: nobody waits any more
        self.server.join()
        os.close(self.device)
        self.directory.cleanup()

    def _serve(self) -> None:
        attributes = struct.pack("<6Q10I", 1, 0, 0, 0, 0, 0, *(0, 0, 0, 0o100644, 1), *[0] * 5)
        answers = {
            26: struct.pack("<4I2H2I36x", 7, 31, 0, 0, 16, 12, 4096, 1),  # INIT
            3: struct.pack("<QII", 60, 0, 0) + attributes,  # GETATTR
            14: struct.pack("<QII", 1, 0, 0),  # OPEN
        }
        while True:
            try:
                request = os.read(self.device, 1 << 17)
            except OSError:
                return
            _, opcode, unique = struct.unpack_from("<IIQ", request)
            if opcode == 25:  # FLUSH
                self.flushed.set()
            elif opcode in answers:
                body = answers[opcode]
                os.write(self.device, struct.pack("<IiQ", 16 + len(body), 0, unique) + body)
            elif opcode not in (2, 36):  # FORGET and INTERRUPT are not answered
                os.write(self.device, struct.pack("<IiQ", 16, -errno.ENOSYS, unique))


# The second changes the file, and then hangs in execve(2), which closes FUSE's file with
# exec_update_lock held.
CUT = "import os, sys; os.truncate(sys.argv[1], 0)"
STUCK = """
import os, sys
fd = os.open(sys.argv[2], os.O_RDONLY | os.O_CLOEXEC)
os.truncate(sys.argv[1], 4096)
os.execv("/bin/true", ["true"])
"""


def test_a_task_that_cannot_be_looked_at_stops_nobody(fs: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        keeper = stack.enter_context(keeping(tmp_path / "keeper.sock"))
        other, file = (
            stack.enter_context(closing(Watched(keeper, fs / name))) for name in ("other", "stuck")
        )
        fuse = UnansweredFlush()
        hostile = subprocess.Popen([sys.executable, "-c", STUCK, file.path, fuse.path])
        stack.callback(hostile.wait)
        stack.callback(fuse.close)
        stack.callback(hostile.send_signal, signal.SIGKILL)
        assert fuse.flushed.wait(PATIENCE)
        before = keeper.counters()["lost_looks"]
        until(lambda: keeper.in_flight(*file.key) > 0 and lost(keeper) > before, what="a lost look")
        for _ in range(100):
            assert keeper.in_flight(*file.key) == 1, "it may still be changing the file"
        subprocess.run([sys.executable, "-c", CUT, other.path], check=True)
        until(lambda: not keeper.in_flight(*other.key))
        reads(other.path)
        assert hostile.poll() is None, "it hangs still"


def lost(keeper: Keeper) -> int:
    return keeper.counters()["lost_looks"]
