"""What is compared: the sealed range's extent map, and that the file still covers it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from sealsvc.core import extents
from sealsvc.core.model import ByteRange
from sealsvc.linux import native


@dataclass(frozen=True)
class Snapshot:
    """The map at one moment: rows of logical, physical, length, flags; and the file's size."""

    map: Any
    size: int


def take(fd: int) -> Snapshot:
    """Read through a descriptor that was there before the operation: a new one might be held."""
    return Snapshot(native.read_extents(fd, None, sync=True), os.fstat(fd).st_size)


def same(before: Snapshot, after: Snapshot, sealed: ByteRange) -> bool:
    return after.size >= sealed.end and extents.same(before.map, after.map, sealed)
