"""A file's pages in the page cache, which whoever reads or writes its blocks beneath must not leave
there: they would be read as old data, or written back over new."""

from __future__ import annotations

import ctypes
import os
import struct
import time

from sealsvc.errors import Refusal
from sealsvc.host.mapped import has_dax

_CACHESTAT = 451  # __NR_cachestat, the same everywhere, since v6.5
_TRIES, _PAUSE = 20, 0.01
_libc = ctypes.CDLL(None, use_errno=True)


def cached(fd: int) -> int | None:
    """How many pages of the file are cached; None where the kernel does not tell. A file with DAX
    has none, and asking about one oopses the kernel (native/include/sealsvc/cachestat.h)."""
    if has_dax(fd):
        return 0
    whole = ctypes.create_string_buffer(struct.pack("=QQ", 0, 0), 16)
    found = ctypes.create_string_buffer(40)
    if _libc.syscall(_CACHESTAT, fd, whole, found, 0):
        return None
    return int(struct.unpack_from("=Q", found)[0])


def drop(fd: int) -> None:
    """Write back and drop every page. Refusal `try-later` when some stay: somebody uses them.
    POSIX_FADV_DONTNEED leaves what is dirty, mapped or under write-back, so the fsync before, and
    an exclusive seal, so that nobody makes others after."""
    os.fsync(fd)
    for _ in range(_TRIES):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if not (left := cached(fd)):
            return
        time.sleep(_PAUSE)
    raise Refusal("try-later", f"{left} pages of the file stay in the page cache")
