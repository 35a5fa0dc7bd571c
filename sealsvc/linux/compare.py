"""Present extent maps against recorded ones, many at a time (native/kernel/compare.c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange
from sealsvc.linux.native import ffi, lib, take_rows


class Comparison:
    """Compares the present maps of ranges of files of one file system with recorded ones, in one
    native call. `maps` are (n, 4) arrays that are clipped to their range."""

    def __init__(
        self,
        device: int,
        fds: Sequence[int],
        inodes: Sequence[int],
        ranges: Sequence[ByteRange],
        maps: Sequence[ExtentMap],
    ) -> None:
        """`fds` may be closed meanwhile: they are checked against device and inode."""
        self._columns: list[NDArray[Any]] = [
            np.array(fds, np.int32),
            np.array(inodes, np.uint64),
            np.array([span.offset for span in ranges], np.uint64),
            np.array([span.length for span in ranges], np.uint64),
            np.array([len(map) for map in maps], np.uint32),
            np.ascontiguousarray(np.concatenate(maps)),
        ]
        names = ("fds", "inodes", "starts", "lengths", "rows", "extents")
        types = ("int32_t", "uint64_t", "uint64_t", "uint64_t", "uint32_t", "struct seal_extent")
        fields = {
            name: ffi.cast(f"{type} *", column.ctypes.data)
            for name, type, column in zip(names, types, self._columns, strict=True)
        }
        self._recorded = ffi.new(
            "struct seal_recorded *", {"device": device, "count": len(maps), **fields}
        )

    def next_changed(self, start: int) -> tuple[int, ExtentMap | None]:
        """The index of the first range from `start` on whose map is not the recorded one row by
        row, and its present rows (None: it could not be read); the number of ranges and None when
        there is none."""
        found, count = ffi.new("struct seal_extent **"), ffi.new("int64_t *")
        at = int(lib.seal_maps_compare(self._recorded, start, found, count))
        if at == self._recorded.count or count[0] < 0:
            return at, None
        return at, take_rows(found[0], count[0])
