"""Preparing a file for a seal: give every block of the range a written place of its own.

None of the steps changes a byte of data or the size, and none changes the map of a range that can
already be sealed, so that other holders of the same file are not disturbed. Blocks are allocated by
fallocate(2) alone: where a file system does not have it, glibc's posix_fallocate reads and rewrites
a byte of each block, and loses what others write there meanwhile.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Preparation
from sealsvc.linux import native
from sealsvc.linux.host import Progress, Target

WINDOW = 32 << 20  # bytes between two reports of progress
HUGE = 2 << 20  # a PMD, bytes
FALLOC_FL_UNSHARE_RANGE = 0x40


def prepare(
    target: Target, sealed: ByteRange, steps: Sequence[Preparation], progress: Progress
) -> None:
    """Run the steps that were asked for, in the order in which they build on each other."""
    if steps and not target.writable:
        raise Refusal(
            "bad-request",
            "preparing a file needs a writable descriptor: ask with iomode rw",
            {"prepare": [str(step) for step in steps]},
        )
    with ExitStack() as undo:
        if Preparation.ALIGN in steps:
            undo.callback(_take_back, target, native.fsxattr(target.fd).extsize)
            _ask_for_alignment(target)
        _fill(target, sealed, steps, progress)
        undo.pop_all()


def _fill(
    target: Target, sealed: ByteRange, steps: Sequence[Preparation], progress: Progress
) -> None:
    if Preparation.ALLOCATE in steps:
        _allocate(target, sealed, progress)
    if Preparation.UNSHARE in steps and target.filesystem.reflink:
        _unshare(target, progress)
    if Preparation.CONVERT in steps:
        _convert(target, sealed, progress)
    if steps:
        _call("fsync", lambda: os.fsync(target.fd), target)


def _call(name: str, function: Callable[[], object], target: Target) -> None:
    try:
        function()
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise _unsupported(name, target) from error
        advice = _ADVICE.get(error.errno or 0, "")
        raise Refusal(
            "io-error",
            f"{name} of {target.path}: {error.strerror}{advice}",
            {"call": name, "errno": error.errno},
        ) from error


def _unsupported(name: str, target: Target) -> Refusal:
    kind = target.filesystem.type
    why = " (on ext4: a file without extents; lsattr shows no `e`)" if kind == "ext4" else ""
    return Refusal(
        "filesystem-unsupported",
        f"{name} is not supported for {target.path} on {kind}{why}: allocate its blocks by writing"
        " to it, and ask without this preparation",
        {"path": target.path, "filesystem": kind, "call": name},
    )


_ADVICE = {
    errno.ENOSPC: ": free room on the file system (or in the project's quota), or seal a range"
    " that has its blocks already; what was allocated so far stays allocated",
    errno.EDQUOT: ": raise the quota of the file's owner, or free some of it; what was allocated"
    " so far stays allocated",
}


def _allocate(target: Target, sealed: ByteRange, progress: Progress) -> None:
    """Refused beforehand where the holes are larger than what a user without privileges may have:
    the service is root, and would use up the blocks that a file system reserves for root."""
    found = native.read_extents(target.fd, sealed)
    holes = extents.uncovered(found, sealed)
    _refuse_without_room(target, sum(hole.length for hole in holes))
    for hole in holes:
        for window in _windows(hole):
            # Others allocate as well.
            _refuse_without_room(target, window.length)
            allocate = partial(native.allocate, target.fd, window.offset, window.length)
            _call("fallocate", allocate, target)
            progress("allocate", (window.end - sealed.offset) / sealed.length)


def _refuse_without_room(target: Target, wanted: int) -> None:
    room = os.fstatvfs(target.fd)
    left = [("the file system", room.f_bavail * room.f_frsize, errno.ENOSPC)]
    st = os.fstat(target.fd)
    owners = (("user", 0, st.st_uid), ("group", 1, st.st_gid), ("project", 2, _project(target.fd)))
    for name, type, owner in owners:
        quota = native.quota_room(target.fd, type, owner) if owner else None
        if quota is not None:
            left.append((f"the quota of {name} {owner}", quota, errno.EDQUOT))
    for where, available, number in left:
        if wanted > available:
            raise Refusal(
                "io-error",
                f"fallocate of {target.path}: {wanted} bytes are needed, and {where} has"
                f" {available} left (what is reserved for root is not used): free some, or seal a"
                " range that has its blocks already",
                {"call": "fallocate", "errno": number, "needed": wanted, "available": available},
            )


def _project(fd: int) -> int:
    try:
        return native.fsxattr(fd).projid
    except OSError:
        return 0  # there are no projects here


def _windows(sealed: ByteRange) -> list[ByteRange]:
    return [
        ByteRange(at, min(WINDOW, sealed.end - at))
        for at in range(sealed.offset, sealed.end, WINDOW)
    ]


def _ask_for_alignment(target: Target) -> None:
    """Only an empty file can be given an extent size hint (xfs_ioctl_setattr_check_extsize)."""
    if len(native.read_extents(target.fd, None)) == 0:
        native.set_extsize(target.fd, HUGE)


def _take_back(target: Target, hint: int) -> None:
    """Of a file that has no blocks still. One that has some keeps its new hint as well as these."""
    with suppress(OSError):
        if native.fsxattr(target.fd).extsize != hint:
            native.set_extsize(target.fd, hint)


def _unshare(target: Target, progress: Progress) -> None:
    """Everything the file shares, also outside the range: overwriting one shared block on reflink
    XFS leaves a CoW preallocation over its neighbours (host/cow.py). Only what is shared is
    touched: UNSHARE_RANGE would fill holes."""
    _call("fsync", lambda: os.fsync(target.fd), target)
    rows = native.read_extents(target.fd, None)
    shared = [
        ByteRange(int(logical), int(length))
        for logical, _, length, flags in rows
        if int(flags) & native.EXTENT_SHARED
    ]
    for done, extent in enumerate(shared):
        for window in _windows(extent):
            _call("fallocate(UNSHARE_RANGE)", partial(_unshare_range, target.fd, window), target)
            progress("unshare", done / len(shared))


def _unshare_range(fd: int, window: ByteRange) -> None:
    native.fallocate(fd, FALLOC_FL_UNSHARE_RANGE, window.offset, window.length)


def _convert(target: Target, sealed: ByteRange, progress: Progress) -> None:
    """Dirty what is unwritten (and what is delayed) so that writeback converts it."""
    page = os.sysconf("SC_PAGE_SIZE")
    _call("fsync", lambda: os.fsync(target.fd), target)
    found = extents.unsuitable(native.read_extents(target.fd, sealed), sealed)
    for piece in found:
        if piece.reason not in ("unwritten", "delalloc"):
            continue  # holes are for `allocate`, which was not asked for or has been here
        for window in _windows(piece.range.rounded(page)):
            _call(
                "madvise(MADV_POPULATE_WRITE)",
                partial(native.populate_write, target.fd, window.offset, window.length),
                target,
            )
            progress("convert", (window.end - sealed.offset) / sealed.length)
