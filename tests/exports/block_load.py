"""A load that knows what it wrote: `python block_load.py NODE SECONDS [THREADS]`.

Each thread has blocks of its own, writes to them in any order, with O_DIRECT, what tells block and
generation, and reads others back. At the end every block is read. The exit status is 1 after a
request that failed, or a block that is not what was last acknowledged.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import sys
import threading
import time

BLOCK = 4096
MANY = 8  # blocks of the longest request


def content(block: int, generation: int) -> bytes:
    if not generation:
        return b""
    return (hashlib.sha256(b"%d %d" % (block, generation)).digest() * (BLOCK // 32))[:BLOCK]


class Part(threading.Thread):
    def __init__(self, node: str, first: int, count: int, seconds: float) -> None:
        super().__init__()
        self.fd = os.open(node, os.O_RDWR | os.O_DIRECT)
        self.first, self.seconds = first, seconds
        self.generations = [0] * count
        self.buffer = mmap.mmap(-1, MANY * BLOCK)
        self.failure: Exception | None = None
        self.writes = 0

    def run(self) -> None:
        try:
            until = time.monotonic() + self.seconds
            while time.monotonic() < until:
                count = random.randint(1, MANY)
                at = random.randrange(len(self.generations) - count + 1)
                if random.random() < 0.6:
                    self.write(at, count)
                else:
                    self.check(at, count)
            os.fsync(self.fd)
            for at in range(0, len(self.generations) - MANY + 1, MANY):
                self.check(at, MANY)
        except Exception as error:
            self.failure = error

    def write(self, at: int, count: int) -> None:
        for n in range(at, at + count):
            made = content(self.first + n, self.generations[n] + 1)
            self.buffer[(n - at) * BLOCK : (n - at + 1) * BLOCK] = made
        view = memoryview(self.buffer)[: count * BLOCK]
        assert os.pwritev(self.fd, [view], (self.first + at) * BLOCK) == count * BLOCK
        for n in range(at, at + count):
            self.generations[n] += 1
        self.writes += 1

    def check(self, at: int, count: int) -> None:
        view = memoryview(self.buffer)[: count * BLOCK]
        assert os.preadv(self.fd, [view], (self.first + at) * BLOCK) == count * BLOCK
        for n in range(at, at + count):
            wanted = content(self.first + n, self.generations[n])
            found = bytes(view[(n - at) * BLOCK : (n - at + 1) * BLOCK])
            if wanted and found != wanted:
                raise AssertionError(f"block {self.first + n}, {self.generations[n]} times written")


def main() -> int:
    node, seconds = sys.argv[1], float(sys.argv[2])
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    fd = os.open(node, os.O_RDONLY)
    each = os.lseek(fd, 0, os.SEEK_END) // BLOCK // threads
    os.close(fd)
    parts = [Part(node, n * each, min(each, 1024), seconds) for n in range(threads)]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    for part in parts:
        if part.failure is not None:
            print(repr(part.failure), file=sys.stderr)
            return 1
    print(sum(part.writes for part in parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
