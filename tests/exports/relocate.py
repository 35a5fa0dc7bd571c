"""An intruder that relocates a file's bytes, as a defragmenter does.

`python relocate.py FILE ROUNDS LENGTH [PAUSE]`: each round it reads a range, punches it, lets
another file take the blocks, writes the same bytes back, and leaves.
"""

from __future__ import annotations

import ctypes
import os
import random
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


def main() -> None:
    path, rounds, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    size = os.stat(path).st_size
    pause = float(sys.argv[4]) if len(sys.argv) > 4 else 0.05
    for _ in range(rounds):
        relocate(path, random.randrange(size // length) * length, length)
        time.sleep(pause)
    os.unlink(f"{path}.spacer")


if __name__ == "__main__":
    main()
