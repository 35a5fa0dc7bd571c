"""Anchors: the service's own open file description of a sealed file, apart from its holder's.

The anchor is opened before the first guard is in force, wherever that is possible. Otherwise the
service could deadlock with a scanner that uses FAN_OPEN_PERM: when the scanner is asked whether the
service's open may go on, it opens the file itself, by its path, and the guard of an exclusive seal
holds that open.

An anchor that is opened before the guard must not count as an opener, or the proof that nobody else
has the file open (F_SETLEASE) would fail. So it is opened with access mode 3, for neither reading
nor writing, which counts in neither i_readcount nor i_writecount (fs/open.c do_dentry_open,
fs/locks.c check_conflicting_open). The keeper has a duplicate, for the next service.
"""

from __future__ import annotations

import errno
import fcntl
import os

from sealsvc.core.errors import Refusal

_NEITHER = os.O_ACCMODE  # 3: open(2), NOTES


def open_uncounted(fd: int) -> int:
    """Open a description of the file of `fd` that does not count as an opener. Returns -1 where
    that fails: access mode 3 needs the right to write, which nobody has on a read-only file system
    or for an immutable file. Raises Refusal `try-later` while a lease on the file is broken."""
    try:
        return os.open(_path(fd), _NEITHER | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise Refusal(
                "try-later", "the file is under a lease, which is being broken", retry_after=1.0
            ) from None
        return -1


def open_counted(fd: int) -> int:
    """Open the file of `fd` for reading. The description counts as an opener. Raises OSError."""
    return os.open(_path(fd), os.O_RDONLY | os.O_CLOEXEC)


def is_counted(anchor: int) -> bool:
    """Whether there is an anchor (not -1) and it counts as an opener."""
    return anchor >= 0 and fcntl.fcntl(anchor, fcntl.F_GETFL) & os.O_ACCMODE != _NEITHER


def take_over(kept: int) -> int:
    """An anchor from the keeper's descriptor of the file: a duplicate where that is an uncounted
    anchor, else opened for reading. -1 if the open fails, as on a file system that was shut down
    meanwhile."""
    flags = fcntl.fcntl(kept, fcntl.F_GETFL)
    if not flags & os.O_PATH and flags & os.O_ACCMODE == _NEITHER:
        return os.dup(kept)
    try:
        return open_counted(kept)
    except OSError:
        return -1


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
