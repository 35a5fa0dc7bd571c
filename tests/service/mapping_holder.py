"""A process that maps a file as it is told, line by line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import PATIENCE

# `mapped()` maps the file argv[1] (of argv[2] bytes) with nothing on either side, and aligned for
# pages of 2 MiB; each line of Python that comes is run, and what it evaluates to is told.
HOLDER = """
import ctypes, json, mmap, os, sys
path, size = sys.argv[1], int(sys.argv[2])
PAGE = 4096
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
SHARED, PRIVATE, FIXED, POPULATE, SYNC = 1, 2, 16, 0x8000, 0x80000 | 3
fd = os.open(path, os.O_RDWR)
def mapped(flags=SHARED | POPULATE, at=None, length=size, offset=0, fd=fd):
    if at is None:
        room = libc.mmap(None, length + 2 * PAGE + 2**21, 0, 0x22, -1, 0) + PAGE
        at = room + (offset - room) % 2**21
        flags |= FIXED
    address = libc.mmap(at, length, 3, flags, fd, offset)
    assert address not in (None, 2**64 - 1), os.strerror(ctypes.get_errno())
    return address
def ping(): return os.getpid()
print(json.dumps(os.getpid()), flush=True)
for line in sys.stdin:
    if "=" in line.split("(")[0]:
        exec(line)
        print("null", flush=True)
    else:
        print(json.dumps(eval(line)), flush=True)
"""


class Holder:
    def __init__(self, process: subprocess.Popen[str], pid: int) -> None:
        self.process, self.pid = process, pid

    def do(self, line: str) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the holder ended at {line!r}"
        result: int = json.loads(answer)
        return result


@contextmanager
def holder(path: Path, *before: str) -> Iterator[Holder]:
    """`before`: a command that runs the holder, which then may be a child of it."""
    process = subprocess.Popen(
        [*before, sys.executable, "-c", HOLDER, path, str(path.stat().st_size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdin
        pid = int(process.stdout.readline())
        if before:  # it has told the pid that it has in its own namespace
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            pid = int(children.read_text().split()[0])
        yield Holder(process, pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
