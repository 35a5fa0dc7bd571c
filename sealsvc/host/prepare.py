"""Preparing a file for a seal: give every block of the range a written place of its own.

None of the steps changes a byte of data, and none changes the map of a range that is already fit to
be sealed, so that other holders of the same file are not disturbed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial

from sealsvc import extents, native
from sealsvc.errors import Refusal
from sealsvc.host import Progress, Target
from sealsvc.model import ByteRange, Preparation

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
    if Preparation.ALIGN in steps:
        _ask_for_alignment(target)
    if Preparation.ALLOCATE in steps:
        _call("fallocate", lambda: os.posix_fallocate(target.fd, sealed.offset, sealed.length))
    if Preparation.UNSHARE in steps and target.filesystem.reflink:
        _unshare(target, progress)
    if Preparation.CONVERT in steps:
        _convert(target, sealed, progress)
    if steps:
        _call("fsync", lambda: os.fsync(target.fd))


def _call(name: str, function: Callable[[], object]) -> None:
    try:
        function()
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "")
        raise Refusal(
            "io-error", f"{name}: {error.strerror}{advice}", {"call": name, "errno": error.errno}
        ) from error


_ADVICE = {
    errno.ENOSPC: ": free room on the file system (or in the project's quota), or seal a range"
    " that has its blocks already; what was allocated stays allocated",
    errno.EDQUOT: ": raise the quota of the file's owner, or free some of it; what was allocated"
    " stays allocated",
}


def _windows(sealed: ByteRange) -> list[ByteRange]:
    return [
        ByteRange(at, min(WINDOW, sealed.end - at))
        for at in range(sealed.offset, sealed.end, WINDOW)
    ]


def _ask_for_alignment(target: Target) -> None:
    """Only an empty file can be given an extent size hint (xfs_ioctl_setattr_check_extsize)."""
    if len(native.read_extents(target.fd, None)) == 0:
        native.set_extsize(target.fd, HUGE)


def _unshare(target: Target, progress: Progress) -> None:
    """Everything the file shares, also outside the range: overwriting one shared block of reflink
    XFS leaves a CoW preallocation over its neighbours, which then move although FIEMAP calls them
    unshared. Only what is shared is touched: UNSHARE_RANGE would fill holes."""
    _call("fsync", lambda: os.fsync(target.fd))
    rows = native.read_extents(target.fd, None)
    shared = [
        ByteRange(int(logical), int(length))
        for logical, _, length, flags in rows
        if int(flags) & native.EXTENT_SHARED
    ]
    for done, extent in enumerate(shared):
        for window in _windows(extent):
            _call("fallocate(UNSHARE_RANGE)", partial(_unshare_range, target.fd, window))
            progress("unshare", done / len(shared))


def _unshare_range(fd: int, window: ByteRange) -> None:
    native.fallocate(fd, FALLOC_FL_UNSHARE_RANGE, window.offset, window.length)


def _convert(target: Target, sealed: ByteRange, progress: Progress) -> None:
    """Dirty what is unwritten (and what is delayed) so that writeback converts it."""
    page = os.sysconf("SC_PAGE_SIZE")
    _call("fsync", lambda: os.fsync(target.fd))
    found = extents.unsuitable(native.read_extents(target.fd, sealed), sealed)
    for piece in found:
        if piece.reason not in ("unwritten", "delalloc"):
            continue  # holes are for `allocate`, which was not asked for or has been here
        for window in _windows(piece.range.rounded(page)):
            _call(
                "madvise(MADV_POPULATE_WRITE)",
                partial(native.populate_write, target.fd, window.offset, window.length),
            )
            progress("convert", (window.end - sealed.offset) / sealed.length)
