"""Which directories a file lies below, by identity.

By a name alone a directory that was renamed, or is seen elsewhere, cannot be recognised. So the
file's parent is opened, checked to have the file, and left upwards by "..", on a mount that shows
the whole file system.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from sealsvc.linux import mountinfo
from sealsvc.linux.mountinfo import Mount

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 4096

# Finds the whole of a file system (by its device) as an open directory; -1: nowhere.
RootOf = Callable[[int], int]
# A mount of any namespace.
MountOfId = Callable[[int], Mount | None]


def directories_above(fd: int, mount_of_id: MountOfId, root_of: RootOf) -> frozenset[int] | None:
    """Inode numbers of all directories that the file lies below on its file system. None when that
    cannot be known: it has several names, or its name leads elsewhere."""
    st = os.fstat(fd)
    if st.st_nlink == 0:
        return frozenset()  # no directory has it
    if st.st_nlink > 1:
        return None
    path = os.readlink(f"/proc/self/fd/{fd}")
    mount = mount_of_id(mountinfo.mount_id(fd))
    if mount is None or not f"{path}/".startswith(f"{mount.point.rstrip('/')}/"):
        return None
    within = mount.root.rstrip("/") + path[len(mount.point.rstrip("/")) :]
    with ExitStack() as stack:
        top = root_of(st.st_dev)
        if top < 0:
            return None
        stack.callback(os.close, top)
        directory, _, name = within.lstrip("/").rpartition("/")
        try:
            parent = os.open(directory or ".", _DIRECTORY, dir_fd=top)
            stack.callback(os.close, parent)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if (found.st_dev, found.st_ino) != (st.st_dev, st.st_ino):
                return None
            return frozenset(_upwards(parent, top))
        except OSError:
            return None


def _upwards(directory: int, top: int) -> Iterator[int]:
    """The inode numbers from `directory` up to `top`, both included. Raises OSError when the way up
    does not lead there."""
    end = os.fstat(top)
    at = os.dup(directory)
    try:
        for _ in range(_DEEPEST):
            st = os.fstat(at)
            if st.st_dev != end.st_dev:
                break
            yield st.st_ino
            if st.st_ino == end.st_ino:
                return
            above = os.open("..", _DIRECTORY, dir_fd=at)
            os.close(at)
            at = above
    finally:
        os.close(at)
    raise OSError("the way up leaves the file system")
