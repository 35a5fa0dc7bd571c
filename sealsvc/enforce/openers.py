"""Who has a file open, for the text of a refusal."""

from __future__ import annotations

import errno
import os

from sealsvc.linux import native
from sealsvc.linux.host import Target


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
