"""Which pages of its mapping a holder has stored to: for holders, in their own process.

userfaultfd in its asynchronous write-protect mode (UFFD_FEATURE_WP_ASYNC, Linux 6.7) marks a page
at the first store to it, without a message to anybody; PAGEMAP_SCAN (6.7) tells the marked pages
and protects them again in the same step, so that no store falls between two looks. It works on
mappings of ordinary files and of DAX files, and survives fsync(2), which soft-dirty does not.

It sees stores through this mapping of this process alone. write(2), other processes and DMA are not
seen: what they wrote must be told as well.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
from types import TracebackType

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.linux import libc

_USERFAULTFD = 323  # x86-64
_USER_MODE_ONLY = 1
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_WRITEPROTECT = 0xC018AA3F, 0xC020AA00, 0xC018AA06
_API_VERSION, _WP_ASYNC, _WP_UNPOPULATED = 0xAA, 1 << 15, 1 << 13
_MODE_WP = 2
_PAGEMAP_SCAN = 0xC0606610
_SCAN = struct.Struct("<12Q")  # struct pm_scan_arg of linux/fs.h
_WP_MATCHING, _CHECK_WPASYNC = 1, 2
_WRITTEN = 1 << 1  # PAGE_IS_WRITTEN
_REGIONS = 4096


class Tracker:
    """Of the mapping of `view` (a writable shared one), whose first byte is byte `offset` of the
    file. Armed when it is made: make it before the range is opened (PiOpen). Raises OSError:
    ENOSYS, EINVAL on kernels before 6.7, EPERM where userfaultfd(2) is forbidden."""

    def __init__(self, view: mmap.mmap | memoryview, offset: int = 0) -> None:
        place = ctypes.c_char.from_buffer(view)
        self._start, self._offset = ctypes.addressof(place), offset
        del place
        self._length = -(-len(view) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._bytes = len(view)
        self._regions = ctypes.create_string_buffer(_REGIONS * 24)
        flags = os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY
        self._fault = libc.syscall("userfaultfd", _USERFAULTFD, flags)
        self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._arm()
        except BaseException:
            self.close()
            raise

    def _arm(self) -> None:
        api = struct.pack("<3Q", _API_VERSION, _WP_ASYNC | _WP_UNPOPULATED, 0)
        fcntl.ioctl(self._fault, _UFFDIO_API, api)
        span = (self._start, self._length)
        fcntl.ioctl(self._fault, _UFFDIO_REGISTER, struct.pack("<4Q", *span, _MODE_WP, 0))
        fcntl.ioctl(self._fault, _UFFDIO_WRITEPROTECT, struct.pack("<3Q", *span, 1))

    def collect(self) -> list[ByteRange]:
        """Ranges of the file, whole pages, that were stored to since the last call (the first:
        since it was made), in order. Raises Refusal try-later when a part of the range is not
        tracked any more (it was mapped anew): then all of it may have been written."""
        found: list[ByteRange] = []
        at, end = self._start, self._start + self._length
        while at < end:
            request = bytearray(
                _SCAN.pack(
                    _SCAN.size,
                    _WP_MATCHING | _CHECK_WPASYNC,
                    at,
                    end,
                    0,
                    ctypes.addressof(self._regions),
                    _REGIONS,
                    0,
                    0,
                    _WRITTEN,
                    0,
                    _WRITTEN,
                )
            )
            try:
                count = fcntl.ioctl(self._pagemap, _PAGEMAP_SCAN, request)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EFAULT, errno.ENOENT):
                    raise
                raise Refusal(
                    "try-later",
                    "the mapping is not tracked any more: it was mapped anew. Tag the whole range",
                ) from None
            for start, stop, _ in struct.iter_unpack("<3Q", self._regions.raw[: count * 24]):
                _append(found, self._range(start, stop))
            at = _SCAN.unpack(request)[4]  # walk_end
        return found

    def _range(self, start: int, stop: int) -> ByteRange:
        low = start - self._start
        return ByteRange(self._offset + low, min(stop - self._start, self._bytes) - low)

    def close(self) -> None:
        """Ends the tracking; the mapping stays."""
        for fd in (self._fault, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._fault = self._pagemap = -1

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _append(found: list[ByteRange], more: ByteRange) -> None:
    if found and found[-1].end == more.offset:
        more = found.pop().hull(more)
    found.append(more)
