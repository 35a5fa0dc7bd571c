"""The reference device: a file system in an image on a file system that can share blocks."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.scratch import PREFIX, _run, _unmount, mounted
from tests.support.waiting import PATIENCE

MiB = 1 << 20
LOWER = {"xfs": ["-m", "reflink=1"], "btrfs": []}
UPPER = {"ext4": ["-b", "4096"], "xfs": ["-m", "reflink=0"]}


@contextmanager
def lower_filesystem(kind: str, size: int = 1024 * MiB) -> Iterator[Path]:
    with mounted(kind, size=size, mkfs_args=LOWER[kind]) as point:
        yield point


@contextmanager
def upper(
    lower: Path,
    kind: str,
    size: int = 320 * MiB,
    *,
    offset: int = 0,
    direct: bool = False,
    mkfs_args: Sequence[str] = (),
    name: str = "image",
) -> Iterator[Path]:
    """A mounted file system of `kind` in an image on `lower`; `offset` bytes of the image lie
    before it; `direct`: the loop device goes around the image's page cache."""
    image = lower / name
    with ExitStack() as stack:
        with image.open("xb") as file:
            file.truncate(offset + size)
        stack.callback(image.unlink)
        point = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}upper-")))
        options = ["--offset", str(offset), *(["--direct-io=on"] if direct else [])]
        loop = _run("losetup", "--find", "--show", *options, str(image)).strip()
        stack.callback(_run, "losetup", "--detach", loop)
        _run(f"mkfs.{kind}", "-q", *UPPER[kind], *mkfs_args, loop)
        _run("mount", "-t", kind, loop, str(point))
        stack.callback(_unmount, point)
        yield point


def filled(path: Path, data: bytes) -> Path:
    """Written through, in blocks of its own."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def same_bytes(a: Path, b: Path) -> bool:
    """By another program."""
    return subprocess.run(["cmp", "-s", a, b], check=False).returncode == 0


class Layers:
    """A lower and an upper file system that a test takes down and mounts again."""

    def __init__(self, directory: Path, lower: str, upper: str) -> None:
        self._kinds = lower, upper
        self._disk = directory / "disk"
        self.below, self.above = directory / "below", directory / "above"
        self._mounted: list[tuple[Path, str]] = []
        for point in (self.below, self.above):
            point.mkdir()
        with self._disk.open("xb") as file:
            file.truncate(400 * MiB)
        _run(f"mkfs.{lower}", "-q", *LOWER[lower], str(self._disk))
        self._attach(self._disk, lower, self.below)
        with (self.below / "image").open("xb") as file:
            file.truncate(320 * MiB)
        _run(f"mkfs.{upper}", "-q", *UPPER[upper], str(self.below / "image"))
        self._attach(self.below / "image", upper, self.above)

    def again(self) -> None:
        """What a crash left, after the file systems' own recovery."""
        self.down()
        self._attach(self._disk, self._kinds[0], self.below)
        self._attach(self.below / "image", self._kinds[1], self.above)

    def down(self) -> None:
        while self._mounted:
            point, loop = self._mounted.pop()
            # A loop device lets go of its file some time after it was detached.
            deadline = time.monotonic() + PATIENCE
            while subprocess.run(["umount", point], capture_output=True, check=False).returncode:
                assert time.monotonic() < deadline, f"{point} stays busy"
                time.sleep(0.05)
            _run("losetup", "--detach", loop)

    def _attach(self, image: Path, kind: str, point: Path) -> None:
        loop = _run("losetup", "--find", "--show", str(image)).strip()
        try:
            _run("mount", "-t", kind, loop, str(point))
        except BaseException:
            _run("losetup", "--detach", loop)
            raise
        self._mounted.append((point, loop))


_SHUTDOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN


def shut_down(point: Path) -> None:
    """As if the machine had lost this file system: the log is not flushed."""
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", 2))  # ..._NOLOGFLUSH
    finally:
        os.close(fd)
