"""A load that knows what it wrote: `python block_load.py NODE SECONDS [THREADS] [SLOW]`.

NODE is a block device or a file, or an NBD URI (then with Debian's Python). Each thread has blocks
of its own, writes to them in any order, past the page cache, what tells block and generation, and
reads others back. At the end, after SECONDS or SIGTERM, every block is read. The exit status is 1
after a request that failed, or a block that is not what was last acknowledged: a write that was
lost, or done again after a later one. Requests that took longer than SLOW_NS are lines of the file
SLOW: begin and end, ns of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import signal
import sys
import threading
import time

BLOCK = 4096
MANY = 8  # blocks of the longest request
SLOW_NS = 1_000_000


def content(block: int, generation: int) -> bytes:
    if not generation:
        return b""
    return (hashlib.sha256(b"%d %d" % (block, generation)).digest() * (BLOCK // 32))[:BLOCK]


class Node:
    """A block device or a file, past the page cache."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)

    @property
    def size(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END)

    def write(self, view: memoryview, offset: int) -> None:
        assert os.pwritev(self._fd, [view], offset) == len(view)

    def read(self, view: memoryview, offset: int) -> None:
        assert os.preadv(self._fd, [view], offset) == len(view)

    def flush(self) -> None:
        os.fsync(self._fd)


def opened(node: str) -> Node:
    if node.startswith("nbd"):
        from nbd_device import NbdDevice

        return NbdDevice(node)
    return Node(node)


class Part(threading.Thread):
    ended = threading.Event()

    def __init__(self, node: str, first: int, count: int, seconds: float, slow: str) -> None:
        super().__init__()
        self.device = opened(node)
        self.first, self.seconds = first, seconds
        self.generations = [0] * count
        self.buffer = mmap.mmap(-1, MANY * BLOCK)
        self.failure: Exception | None = None
        self.writes = 0
        self.slow = open(slow, "a", buffering=1) if slow else None  # noqa: SIM115

    def run(self) -> None:
        try:
            until = time.monotonic() + self.seconds
            while time.monotonic() < until and not self.ended.is_set():
                count = random.randint(1, MANY)
                at = random.randrange(len(self.generations) - count + 1)
                if random.random() < 0.6:
                    self.write(at, count)
                else:
                    self.check(at, count)
            self.device.flush()
            for at in range(0, len(self.generations) - MANY + 1, MANY):
                self.check(at, MANY)
        except Exception as error:
            self.failure = error

    def write(self, at: int, count: int) -> None:
        for n in range(at, at + count):
            made = content(self.first + n, self.generations[n] + 1)
            self.buffer[(n - at) * BLOCK : (n - at + 1) * BLOCK] = made
        begun = time.monotonic_ns()
        self.device.write(memoryview(self.buffer)[: count * BLOCK], (self.first + at) * BLOCK)
        self.note(begun)
        for n in range(at, at + count):
            self.generations[n] += 1
        self.writes += 1

    def check(self, at: int, count: int) -> None:
        view = memoryview(self.buffer)[: count * BLOCK]
        begun = time.monotonic_ns()
        self.device.read(view, (self.first + at) * BLOCK)
        self.note(begun)
        for n in range(at, at + count):
            wanted = content(self.first + n, self.generations[n])
            found = bytes(view[(n - at) * BLOCK : (n - at + 1) * BLOCK])
            if wanted and found != wanted:
                raise AssertionError(f"block {self.first + n}, {self.generations[n]} times written")

    def note(self, begun: int) -> None:
        now = time.monotonic_ns()
        if self.slow is not None and now - begun > SLOW_NS:
            self.slow.write(f"{begun} {now}\n")


def main() -> int:
    node, seconds = sys.argv[1], float(sys.argv[2])
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    slow = sys.argv[4] if len(sys.argv) > 4 else ""
    signal.signal(signal.SIGTERM, lambda *_: Part.ended.set())
    each = opened(node).size // BLOCK // threads
    parts = [Part(node, n * each, min(each, 1024), seconds, slow) for n in range(threads)]
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
