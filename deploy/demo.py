"""The main job, shown on a real XFS: `sudo ./dev demo`.

Round one: a holder seals a file and writes through its mapping; an intruder punches a hole, waits;
the holder is recalled and returns; the intruder goes on. Round two: the seal refuses, the intruder
gets an errno, and the extent map is unchanged. Everything happens between real processes, on a loop
device that is gone afterwards.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent
MiB = 1 << 20

HOLDER = """
import mmap, os, signal, sys, time
fd = int(os.environ["SEALSVC_FD"])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
mapping = mmap.mmap(fd, 0)
mapping[8192:8213] = b"written through a map"
print(f"holder {os.getpid()}: has written through its mapping", flush=True)
if signal.sigtimedwait([signal.SIGTERM], float(sys.argv[1])):
    print(f"holder {os.getpid()}: recalled; finishing for half a second", flush=True)
    time.sleep(0.5)
mapping.flush()
mapping.close()
os.close(fd)
print(f"holder {os.getpid()}: unmapped, closed, done", flush=True)
"""


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


@contextmanager
def scratch_xfs() -> Iterator[Path]:
    """An XFS on a loop device; -o loop detaches it with the unmount."""
    with tempfile.TemporaryDirectory(prefix="sealsvc-demo-") as directory:
        image, point = Path(directory, "image"), Path(directory, "mnt")
        point.mkdir()
        with image.open("wb") as file:
            file.truncate(400 * MiB)
        run("mkfs.xfs", "-q", image)
        run("mount", "-o", "loop", image, point)
        try:
            yield point
        finally:
            unmount(point)


def unmount(point: Path) -> None:
    """What served it ends in its own time, the keeper last."""
    deadline = time.monotonic() + 60
    while subprocess.run(["umount", point], capture_output=True).returncode:
        if time.monotonic() > deadline:
            run("umount", point)
        time.sleep(0.1)


@contextmanager
def service(root: Path, socket: Path) -> Iterator[None]:
    command = [BIN / "sealsvc", "serve", "--socket", socket, "--root", root]
    process = subprocess.Popen([str(part) for part in command])
    try:
        deadline = time.monotonic() + 60
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("demo: the service did not start")
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def holder(file: Path, conflict: str, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    command = [BIN / "sealctl", "hold", file, "--conflict", conflict, "--"]
    process = subprocess.Popen(
        [*map(str, command), sys.executable, "-c", HOLDER, str(seconds)],
    )
    deadline = time.monotonic() + 60
    while b"granted" not in subprocess.run([BIN / "sealctl", "ls"], capture_output=True).stdout:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("demo: the seal was not granted")
        time.sleep(0.1)
    time.sleep(0.3)
    try:
        yield process
    finally:
        process.wait(60)


def extent_map(file: Path) -> str:
    """By the tool of the file system itself, not by ours."""
    return run("xfs_io", "-r", "-c", "fiemap -v", file).stdout


def punch(file: Path) -> tuple[int, str, float]:
    say("intruder: fallocate --punch-hole of 4096:65536")
    begun = time.monotonic()
    done = subprocess.run(
        ["fallocate", "--punch-hole", "--offset", "4096", "--length", "65536", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr.strip(), time.monotonic() - begun


def new_file(file: Path) -> None:
    file.write_bytes(os.urandom(4 * MiB))
    run("sync", "-f", file)


def waits(file: Path) -> None:
    say("round one: conflicts wait while the seal is recalled")
    new_file(file)
    with holder(file, "wait", 60):
        status, _, seconds = punch(file)
        assert status == 0, "the intruder failed"
        assert seconds >= 0.4, "the intruder did not wait for the holder"
        say(f"intruder: waited {seconds * 1000:.0f} ms, then the hole was punched")


def refuses(file: Path) -> None:
    say("round two: conflicts are refused")
    new_file(file)
    before = extent_map(file)
    with holder(file, "refuse", 10):
        status, error, seconds = punch(file)
        assert status != 0, "the intruder was not refused"
        say(f"intruder: refused after {seconds * 1000:.0f} ms: {error}")
    assert extent_map(file) == before, "the extent map changed"
    say("the extent map is unchanged:")
    print(before, flush=True)


def main() -> None:
    if os.geteuid() != 0:
        raise SystemExit("demo: mounting a file system needs root: sudo ./dev demo")
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sealsvc-demo-"))
        root = stack.enter_context(scratch_xfs())
        say(f"XFS on a loop device, mounted on {root}")
        socket = Path(directory, "control.sock")
        os.environ["SEALSVC_SOCKET"] = str(socket)
        stack.enter_context(service(root, socket))
        waits(root / "one")
        refuses(root / "two")
    say("done; nothing is left behind")


if __name__ == "__main__":
    main()
