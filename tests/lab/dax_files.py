"""Files with blocks of their own for mappings of 2 MiB, and the native questions about them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sealsvc.core.model import ByteRange
from sealsvc.linux import native
from tests.service.mapping_holder import Holder

PAGE = 4096
MiB = 1 << 20
HUGE = 2 * MiB
SIZE = 8 * MiB
WHOLE = ByteRange(0, SIZE)
SYNCHRONOUS = "mapped(SYNC | POPULATE)"  # for mapping_holder


def make(path: Path, size: int = SIZE) -> Path:
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for at in range(0, size, MiB):
            os.pwrite(file.fileno(), bytes(MiB), at)
        os.fsync(file.fileno())
    return path


def extents(path: Path) -> native.ExtentMap:
    with path.open("rb") as file:
        return native.read_extents(file.fileno(), None, sync=True)


def ask(process: Holder, path: Path, span: ByteRange = WHOLE, **wanted: Any) -> native.Validation:
    st = path.stat()
    return native.validate_mapping(process.pid, st.st_dev, st.st_ino, span, **wanted)
