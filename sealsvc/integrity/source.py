"""Reading a file's data as the device has it, past the page cache where that can be.

Everything here blocks.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

from sealsvc.linux.host.mapped import has_dax

_ALIGNED = 4096  # bytes: the largest logical block size there is


class Source:
    """`direct` tells the way: O_DIRECT, from the device; else through the page cache, of which
    clean pages are dropped first (pages that somebody maps stay)."""

    def __init__(self, fd: int, *, direct: bool) -> None:
        self.fd, self.direct = fd, direct
        self._room = memoryview(b"")

    @property
    def way(self) -> str:
        return "direct" if self.direct else "cached"

    @property
    def changed(self) -> int:
        """The file's change time, ns."""
        return os.fstat(self.fd).st_ctime_ns

    def read(self, offset: int, length: int) -> memoryview:
        """Exactly these bytes. Raises OSError: EIO, EILSEQ (a device that checks), ENODATA (past
        the end of the file)."""
        start, size = _span(offset, length)
        return self._fill(memoryview(mmap.mmap(-1, size)), start, offset, length)

    def look(self, offset: int, length: int) -> memoryview:
        """The same, in memory that the next look overwrites. Fresh memory has to be cleared by the
        kernel, page by page, which takes longer than the read itself."""
        start, size = _span(offset, length)
        if len(self._room) < size:
            self._room = memoryview(mmap.mmap(-1, size))
        return self._fill(self._room[:size], start, offset, length)

    def _fill(self, room: memoryview, start: int, offset: int, length: int) -> memoryview:
        size = len(room)
        if not self.direct:
            os.posix_fadvise(self.fd, start, size, os.POSIX_FADV_DONTNEED)
        done = 0
        while done < offset + length - start:
            got = os.preadv(self.fd, [room[done:]], start + done)
            if not got:
                raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), "pread")
            done += got
        return room[offset - start : offset - start + length]


def _span(offset: int, length: int) -> tuple[int, int]:
    """Whole blocks: where they begin, and bytes."""
    start = offset & -_ALIGNED
    return start, -(-(offset + length - start) // _ALIGNED) * _ALIGNED


@contextmanager
def opened(anchor: int, *, leased: bool) -> Iterator[Source]:
    """The file of a descriptor, read apart from it. With a lease on it (`leased`) another
    description would break that: the descriptor itself is used then."""
    if leased or has_dax(anchor):
        # After it each store faults, and so changes the file's ctime. A direct read of what is in
        # the page cache does that by itself (mm/filemap.c kiocb_write_and_wait).
        os.fsync(anchor)
    if not leased:
        try:
            fd = os.open(f"/proc/self/fd/{anchor}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:  # no O_DIRECT there
                raise
        else:
            try:
                yield Source(fd, direct=True)
            finally:
                os.close(fd)
            return
    yield Source(anchor, direct=False)
