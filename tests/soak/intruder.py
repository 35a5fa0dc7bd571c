"""An intruder: any operation that may move blocks, by path, over and over."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.soak.stats import Stats

UNIT, UNITS = 65536, 16
FICLONE = 0x40049409

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Intruder:
    def __init__(self, seed: str, files: list[Path]) -> None:
        self.chance = random.Random(seed)
        self.files = files
        self.data = os.urandom(UNIT)

    def one(self) -> str:
        path = self.chance.choice(self.files)
        act: Callable[[Path], None] = self.chance.choice(ACTS)
        try:
            act(self, path)  # type: ignore[call-arg,arg-type]
        except FileNotFoundError:
            self.refill(path)
            return "made"
        return act.__name__

    def at(self) -> int:
        return self.chance.randrange(UNITS) * UNIT

    def fallocate(self, path: Path, mode: int) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            if _libc.fallocate(fd, mode, self.at(), UNIT * self.chance.randrange(1, 4)):
                raise OSError(ctypes.get_errno(), "fallocate")
        finally:
            os.close(fd)

    def truncate(self, path: Path) -> None:
        os.truncate(path, self.at())

    def ftruncate(self, path: Path) -> None:
        with path.open("r+b", buffering=0) as file:
            file.truncate(self.at())

    def anew(self, path: Path) -> None:
        path.write_bytes(self.data)

    def punch(self, path: Path) -> None:
        self.fallocate(path, 3)

    def zero(self, path: Path) -> None:
        self.fallocate(path, 16)

    def collapse(self, path: Path) -> None:
        self.fallocate(path, 8)

    def insert(self, path: Path) -> None:
        self.fallocate(path, 32)

    def allocate(self, path: Path) -> None:
        self.fallocate(path, 0)

    def write(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR)
        try:
            os.pwrite(fd, self.data, self.at())
            os.fsync(fd)
        finally:
            os.close(fd)

    def reflink(self, path: Path) -> None:
        copy = path.with_name(f"copy-{os.getpid()}")
        with path.open("rb") as source, copy.open("wb") as target:
            try:
                fcntl.ioctl(target, FICLONE, source.fileno())
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                    raise
            finally:
                copy.unlink()

    def rename(self, path: Path) -> None:
        other = path.with_name(f"{path.name}.renamed")
        path.rename(other)
        other.rename(path)

    def replace(self, path: Path) -> None:
        new = path.with_name(f"{path.name}.new-{os.getpid()}")
        self.refill(new)
        new.rename(path)

    def unlink(self, path: Path) -> None:
        path.unlink()
        self.refill(path)

    def refill(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            for unit in range(UNITS):
                os.pwrite(fd, self.data, unit * UNIT)
            os.fsync(fd)
        finally:
            os.close(fd)


ACTS = [
    Intruder.truncate, Intruder.ftruncate, Intruder.anew, Intruder.punch, Intruder.zero,
    Intruder.collapse, Intruder.insert, Intruder.allocate, Intruder.write, Intruder.reflink,
    Intruder.rename, Intruder.replace, Intruder.unlink,
    *[Intruder.refill] * 6,
]  # fmt: skip


def main() -> None:
    seed, directory, name, *files = sys.argv[1:]
    intruder = Intruder(seed, [Path(file) for file in files])
    stats = Stats(Path(directory), name)
    counts: Counter[str] = stats.counts
    while True:
        began = time.monotonic()
        try:
            intruder.one()
        except OSError as error:
            counts[f"intruders got {errno.errorcode.get(error.errno or 0)}"] += 1
        counts["intruders' operations"] += 1
        if time.monotonic() - began > 0.1:
            counts["intruders' waits of over 0.1 s"] += 1
        stats.write_if_due()
        time.sleep(0.004)


if __name__ == "__main__":
    main()
