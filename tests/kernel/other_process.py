"""Another process that does something with a file and stands still until it is let go."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.waiting import PATIENCE

_PRELUDE = """\
import ctypes, mmap, os, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def ready():
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@contextmanager
def other(script: str, *args: object, pass_fds: Sequence[int] = ()) -> Iterator[int]:
    """Runs the Python `script`, which calls ready() when it is done; gives the pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", _PRELUDE + script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    assert process.stdin
    assert process.stdout
    try:
        pid = process.stdout.readline()
        assert pid, f"the other process failed: {process.wait()}"
        yield int(pid)
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
