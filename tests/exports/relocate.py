"""An intruder that relocates a file's bytes, as a defragmenter does.

`python relocate.py FILE ROUNDS LENGTH PAUSE [STATS]`: each round it reads a range, punches it, lets
another file take the blocks, writes the same bytes back, and leaves. With STATS, the counters of an
export, it waits before each until the export serves: so that each is a recall of its own.
"""

from __future__ import annotations

import ctypes
import os
import random
import struct
import sys
import time

KEEP_SIZE, PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def relocate(path: str, offset: int, length: int) -> None:
    fd = os.open(path, os.O_RDWR)  # waits while an exclusive seal is recalled
    try:
        data = os.pread(fd, length, offset)
        fallocate(fd, KEEP_SIZE | PUNCH_HOLE, offset, length)
        spacer = os.open(f"{path}.spacer", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        fallocate(spacer, 0, 0, random.choice((1, 2, 3)) * length)
        assert os.pwrite(fd, data, offset) == length
        os.fsync(fd)
        os.close(spacer)
    finally:
        os.close(fd)


def serves(stats: str) -> bool:
    with open(stats, "rb") as page:
        return struct.unpack("=QII", page.read(16))[2] == 1


def main() -> None:
    path, rounds, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    size = os.stat(path).st_size
    pause, stats = float(sys.argv[4]), sys.argv[5] if len(sys.argv) > 5 else ""
    for _ in range(rounds):
        while stats and not serves(stats):
            time.sleep(0.005)
        relocate(path, random.randrange(size // length) * length, length)
        time.sleep(pause)
    os.unlink(f"{path}.spacer")


if __name__ == "__main__":
    main()
