"""Who else has a file open."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from sealsvc.linux import native
from sealsvc.linux.host import Target

# Seconds. A scanner of viruses closes a file shortly after it has let its opener go on.
_CLOSING = 0.1


def is_sole(target: Target) -> bool:
    """Whether the file is open by the target's description alone. Who is about to close it is
    waited for: in a thread, while nobody can open it anew."""
    deadline = time.monotonic() + _CLOSING
    while not native.lease_probe(target.fd, fcntl.F_WRLCK):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.002)
    return True


def pids(target: Target) -> list[int]:
    """Processes other than the service that have the file open; none are named while processes
    start faster than /proc is read."""
    try:
        found = native.openers(target.file.device, target.file.inode, os.getpid())
    except OSError as error:
        if error.errno != errno.EAGAIN:
            raise
        return []
    return sorted({opener.pid for opener in found})
