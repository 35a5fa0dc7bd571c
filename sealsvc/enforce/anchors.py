"""Anchors: the service's own description of a sealed file, apart from its holder's.

Nothing is opened while a guard is in force: a scanner with FAN_OPEN_PERM that is asked whether an
open may go on opens the file itself, by its path, which the guard of an exclusive seal holds; each
would wait for the other. So the anchor is opened before the first guard. It must not count as an
opener then, or the proof that nobody else has the file open (F_SETLEASE) would fail: it is opened
with access mode 3, for neither reading nor writing, which counts in neither i_readcount nor
i_writecount (fs/open.c do_dentry_open, fs/locks.c check_conflicting_open). The keeper has a
duplicate, for the next service.
"""

from __future__ import annotations

import errno
import fcntl
import os

from sealsvc.core.errors import Refusal

_NEITHER = os.O_ACCMODE  # 3: open(2), NOTES


def open_uncounted(fd: int) -> int:
    """A description of the file of `fd` that does not count as an opener; -1 where that cannot be
    had: it needs the right to write, which nobody has on a file system that is read-only, or to an
    immutable file."""
    try:
        return os.open(_path(fd), _NEITHER | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise Refusal(
                "try-later", "the file is under a lease, which is being broken", retry_after=1.0
            ) from None
        return -1


def open_counted(fd: int) -> int:
    return os.open(_path(fd), os.O_RDONLY | os.O_CLOEXEC)


def is_counted(anchor: int) -> bool:
    """Is there an anchor, and does it count as an opener?"""
    return anchor >= 0 and fcntl.fcntl(anchor, fcntl.F_GETFL) & os.O_ACCMODE != _NEITHER


def take_over(kept: int) -> int:
    """The anchor that goes with the keeper's descriptor of the file: the same description, where it
    is one. -1 on a file system that was shut down meanwhile."""
    flags = fcntl.fcntl(kept, fcntl.F_GETFL)
    if not flags & os.O_PATH and flags & os.O_ACCMODE == _NEITHER:
        return os.dup(kept)
    try:
        return open_counted(kept)
    except OSError:
        return -1


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
