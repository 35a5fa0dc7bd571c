"""Preallocations in the CoW fork of an XFS file: blocks that the next write moves to.

XFS allocates in the CoW fork in units of cowextsize (128 KiB, and the owner of the file may raise
it) around a write to a shared block, and around an RWF_ATOMIC write. Writeback of a page that such
an extent covers moves its block there, shared or not (fs/xfs/xfs_aops.c xfs_map_blocks). FIEMAP
does not report them. But they count in st_blocks: xfs_bmap.c (xfs_bmap_btalloc_accounting) treats
them as delayed allocation. What st_blocks has beyond the extents is CoW preallocations, or blocks
of the extent tree and of extended attributes, which files with few extents do not have.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict

import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.linux import native
from sealsvc.linux.host import ExtentMap, Target

_TRIES = 5
_PAUSE = 0.02  # seconds
_KNOWN = 4096
_SECTOR = 512  # bytes, the unit of st_blocks


class CowPreallocations:
    """Drops them. Remembers of files with blocks beyond their extents that these are metadata."""

    def __init__(self) -> None:
        self._metadata: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()

    def drop(self, target: Target, rows: ExtentMap) -> None:
        """`rows` is the map of the whole file. Moves and allocates nothing."""
        if self._is_clear(target, rows):
            return
        for attempt in range(_TRIES):
            os.fsync(target.fd)
            if attempt:  # see native/include/sealsvc/files.h: fsync may not be enough
                native.sync_filesystem(target.fd)
            native.xfs_free_preallocations(target.fd)
            rows = native.read_extents(target.fd, None)
            beyond = _beyond(target.fd, rows)
            if beyond <= 0:
                return
            if attempt and not native.dirty_pages(target.fd):
                self._remember(target, (beyond, len(rows)))
                return
            time.sleep(_PAUSE * attempt)
        raise Refusal(
            "try-later",
            f"{target.path} may have CoW preallocations, by which blocks of the range would move on"
            " the next write; they cannot be dropped while others keep writing to it",
            {"path": target.path},
            retry_after=1.0,
        )

    def _is_clear(self, target: Target, rows: ExtentMap) -> bool:
        beyond = _beyond(target.fd, rows)
        known = self._metadata.get((target.file.device, target.file.inode))
        return beyond <= 0 or known == (beyond, len(rows))

    def _remember(self, target: Target, metadata: tuple[int, int]) -> None:
        key = (target.file.device, target.file.inode)
        self._metadata[key] = metadata
        self._metadata.move_to_end(key)
        if len(self._metadata) > _KNOWN:
            self._metadata.popitem(last=False)


def _beyond(fd: int, rows: ExtentMap) -> int:
    """Bytes that the inode has beyond its extents."""
    return os.fstat(fd).st_blocks * _SECTOR - int(rows[:, 2].sum(dtype=np.uint64))
