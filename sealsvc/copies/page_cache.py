"""Having the kernel forget what it cached of a file or a block device."""

from __future__ import annotations

import os

from sealsvc.linux import native


def drop(fd: int) -> None:
    """Every clean page that nobody uses."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def drop_range(fd: int, offset: int, length: int) -> None:
    """At least the range: of a large folio that reaches beyond it nothing is dropped
    (mapping_try_invalidate, mm/truncate.c, v6.18), so that all has to be then."""
    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    if native.cached_pages(fd, offset, length) != 0:
        drop(fd)
