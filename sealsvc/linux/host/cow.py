"""Preallocations in the CoW fork of an XFS file: blocks that the next write moves to.

XFS allocates in the CoW fork in units of cowextsize (128 KiB, and the owner of the file may raise
it) around a write to a shared block, and around an RWF_ATOMIC write. Writeback of a page that such
an extent covers moves its block there, shared or not (fs/xfs/xfs_aops.c xfs_map_blocks). FIEMAP
does not report them. But they count in st_blocks: xfs_bmap.c (xfs_bmap_btalloc_accounting) treats
them as delayed allocation. What an inode has beyond its extents is CoW preallocations, or metadata:
blocks of the extent tree and of extended attributes.

That there are none is proven where the metadata takes at least all of what is beyond: bulkstat
tells how many extents both forks have at that moment. Only of a file whose extent tree is sparse,
or whose attributes have extents of several blocks, more has to be believed: see _is_dropped.
"""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.linux import native
from sealsvc.linux.host import ExtentMap, Target

_TRIES = 6
_LOOKS = 20  # for a moment in which the file's blocks do not change
_PAUSE = 0.02  # seconds
_KNOWN = 4096
_SECTOR = 512  # bytes, the unit of st_blocks
_TICK = 20_000_000  # ns: more than any step of a file system's clock


@dataclass(frozen=True)
class Blocks:
    """The map of the whole file, the bytes that the inode had `beyond` it, and what was `counted`
    of it at the same moment."""

    rows: ExtentMap
    beyond: int
    counted: native.XfsBlocks

    @property
    def are_clear(self) -> bool:
        """There is no preallocation."""
        return self.beyond <= self.counted.metadata

    @property
    def may_be_clear(self) -> bool:
        return self.beyond <= self.counted.metadata_most


def look(target: Target) -> Blocks:
    """Raises Refusal `try-later`, OSError. Closing a file frees its blocks beyond EOF, and others
    may set attributes meanwhile: a map is worth something with the count of blocks that it had."""
    for _ in range(_LOOKS):
        before = _counted(target.fd)
        rows = native.read_extents(target.fd, None)
        if os.fstat(target.fd).st_blocks * _SECTOR == before.bytes:
            beyond = before.bytes - int(rows[:, 2].sum(dtype=np.uint64))
            return Blocks(rows, beyond, before)
    raise _refused(target)


def _counted(fd: int) -> native.XfsBlocks:
    try:
        return native.xfs_blocks(fd)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
    st = os.fstat(fd)  # mapped ids: nothing is known of the metadata
    return native.XfsBlocks(st.st_blocks * _SECTOR, 0, 1 << 63, st.st_ctime_ns)


class CowPreallocations:
    """Drops them. Remembers of files with blocks beyond their extents that these are metadata."""

    def __init__(self) -> None:
        self._metadata: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()

    def drop(self, target: Target, blocks: Blocks) -> None:
        """`blocks` is what look() found last. Moves and allocates nothing. Raises Refusal
        `try-later`, OSError."""
        if blocks.are_clear or self._is_known(target, blocks):
            return
        for attempt in range(_TRIES):
            os.fsync(target.fd)
            if attempt:  # see native/include/sealsvc/files.h: fsync may not be enough
                native.sync_filesystem(target.fd)
            changed = os.fstat(target.fd).st_ctime_ns
            native.xfs_free_preallocations(target.fd)
            blocks = look(target)
            if blocks.are_clear:
                return
            if attempt and _is_dropped(target, blocks, changed):
                self._remember(target, blocks)
                return
            time.sleep(_PAUSE * attempt)
        raise _refused(target)

    def _is_known(self, target: Target, blocks: Blocks) -> bool:
        """Nobody has changed the file since it was found so."""
        known = self._metadata.get((target.file.device, target.file.inode))
        return known == (blocks.beyond, blocks.counted.changed)

    def _remember(self, target: Target, blocks: Blocks) -> None:
        if time.time_ns() - blocks.counted.changed < _TICK:
            return  # another change might get the same time
        key = (target.file.device, target.file.inode)
        self._metadata[key] = (blocks.beyond, blocks.counted.changed)
        self._metadata.move_to_end(key)
        if len(self._metadata) > _KNOWN:
            self._metadata.popitem(last=False)


def _is_dropped(target: Target, blocks: Blocks, changed: int) -> bool:
    """Whether the kernel has looked for preallocations just now, and what is beyond may be
    metadata. It leaves a file out that has a dirty page, a page under writeback, or direct I/O in
    flight. There is no such page now, and none became dirty since the file was `changed` (ns):
    that would have changed ctime again. Direct asynchronous reads leave no trace: what they hide
    beside metadata of unknown size is not found."""
    is_old = time.time_ns() - changed > _TICK
    return (
        blocks.may_be_clear
        and is_old
        and blocks.counted.changed == changed
        and not native.dirty_pages(target.fd)
    )


def _refused(target: Target) -> Refusal:
    return Refusal(
        "try-later",
        f"{target.path} may have CoW preallocations, by which blocks of the range would move on"
        " the next write; they cannot be dropped while others write to it, or read it by direct"
        " asynchronous I/O",
        {"path": target.path},
        retry_after=1.0,
    )
