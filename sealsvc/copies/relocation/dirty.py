"""Which parts of a file were written to since the last look, mapped stores included.

The kernel reports each folio that becomes dirty (trace event writeback_dirty_folio,
mm/page-writeback.c folio_account_dirtied), and each direct write of XFS (xfs_file_direct_write). A
folio that is dirty already is not reported again. So the order is: take the log, write the file
back (which cleans every folio and write-protects its mappings), copy what the log said. What is
dirtied after the log was taken is in the next one, and is copied after the write-back that follows.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from sealsvc.copies.relocation import calls
from sealsvc.core.model import ByteRange

_PAGE = os.sysconf("SC_PAGE_SIZE")
_LARGEST = 2048  # pages of a folio: MAX_PAGECACHE_ORDER is 11 at most (include/linux/pagemap.h)
_BUFFER_KIB = 2048  # of each processor
_EVENTS = ("writeback/writeback_dirty_folio", "xfs/xfs_file_direct_write")
_PREFIX = "sealsvc-relocation-"
_DIRTY = re.compile(rb"writeback_dirty_folio: .*ino=(\d+) index=(\d+)")
_DIRECT = re.compile(
    rb"xfs_file_direct_write: .*ino 0x([0-9a-f]+) .*pos 0x([0-9a-f]+) bytecount 0x([0-9a-f]+)"
)


class DirtyLog:
    """Raises OSError where the kernel has no tracing, or does not let us."""

    def __init__(self, name: str, inode: int) -> None:
        self._root = calls.tracefs()
        self._instance = Path(f"/proc/self/fd/{self._root}/instances/{_PREFIX}{name}")
        self._pipe = -1
        try:
            self._instance.mkdir()
            (self._instance / "buffer_size_kb").write_text(str(_BUFFER_KIB))
            for event in _EVENTS:
                directory = self._instance / "events" / event
                (directory / "filter").write_text(f"ino == {inode}")
                (directory / "enable").write_text("1")
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            self._pipe = os.open(self._instance / "trace_pipe", flags)
        except BaseException:
            self.close()
            raise

    def take(self, size: int) -> list[ByteRange] | None:
        """What was written to since the last call, in a file of `size` bytes; None: that is not
        known, because events were lost."""
        text = b""
        with suppress(BlockingIOError):
            while piece := os.read(self._pipe, 1 << 16):
                text += piece
        if self._lost() or b"LOST" in text:
            return None
        pages: set[tuple[int, int]] = set()
        for line in text.splitlines():
            if found := _DIRTY.search(line):
                pages.add(_folio(int(found[2])))
            elif found := _DIRECT.search(line):
                start, length = int(found[2], 16), int(found[3], 16)
                pages.add((start // _PAGE, -(-(start + length) // _PAGE)))
            elif b": " in line and not line.startswith(b"#"):
                return None  # a line of a form that is not known
        return _joined(pages, size)

    def close(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
        with suppress(OSError):
            self._instance.rmdir()
        os.close(self._root)

    def _lost(self) -> bool:
        return any(
            int(line.split()[-1])
            for path in self._instance.glob("per_cpu/cpu*/stats")
            for line in path.read_text().splitlines()
            if line.startswith(("overrun:", "commit overrun:", "dropped events:"))
        )


def forget(name: str) -> None:
    """Remove what a service that was killed left of a log."""
    with suppress(OSError):
        root = calls.tracefs()
        try:
            Path(f"/proc/self/fd/{root}/instances/{_PREFIX}{name}").rmdir()
        finally:
            os.close(root)


def _folio(index: int) -> tuple[int, int]:
    """The pages of the largest folio that may begin at page `index`: it is aligned to its size."""
    return index, index + min(index & -index if index else _LARGEST, _LARGEST)


def _joined(pages: set[tuple[int, int]], size: int) -> list[ByteRange]:
    found: list[ByteRange] = []
    for first, end in sorted(pages):
        start, stop = first * _PAGE, min(end * _PAGE, size)
        if found and start <= found[-1].end:
            start, stop = found[-1].offset, max(stop, found.pop().end)
        if start < stop:
            found.append(ByteRange(start, stop - start))
    return found
