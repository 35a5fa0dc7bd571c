"""Finds out who else has a file open."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable

import psutil

from sealsvc.core.errors import Refusal
from sealsvc.linux import native
from sealsvc.linux.host import Target

# Seconds. A virus scanner closes a file only shortly after it has let its opener continue.
_CLOSING = 0.1


def is_sole(target: Target) -> bool:
    """Whether the target's description is the only one that has the file open. Waits up to _CLOSING
    for others to close it. Call it in a thread, with a guard in force that keeps others from
    opening the file again."""
    deadline = time.monotonic() + _CLOSING
    while not native.lease_probe(target.fd, fcntl.F_WRLCK):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
    return True


def prove_sole(target: Target, find_others: Callable[[], list[int]]) -> None:
    """Raises Refusal `file-in-use`, which names the processes that `find_others` finds, unless
    is_sole()."""
    if not is_sole(target):
        raise in_use(target, find_others(), "an exclusive seal has no other opener")


def pids(target: Target) -> list[int]:
    """The pids, other than the service's, that have the file open, in order. Empty also when
    processes start faster than /proc is read. Raises OSError."""
    try:
        found = native.openers(target.file.device, target.file.inode, os.getpid())
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return []
    return sorted({opener.pid for opener in found})


def in_use(target: Target, pids: list[int], why: str) -> Refusal:
    """The refusal `file-in-use` that names the processes `pids`, and says `why` that matters."""
    names = []
    for pid in pids:
        try:
            names.append(f"{pid} ({psutil.Process(pid).name()})")
        except psutil.Error:
            names.append(str(pid))
    who = (
        ", ".join(names) or "somebody who is in no process table (a socket's queue, or the kernel)"
    )
    return Refusal(
        "file-in-use",
        f"{target.path} is open in {who}: {why}",
        {"path": target.path, "pids": pids},
        retry_after=1.0,
    )
