"""A file's pages in the page cache, which whoever reads or writes its blocks beneath must not leave
there: they would be read as old data, or written back over new."""

from __future__ import annotations

import os
import time

from sealsvc.core.errors import Refusal
from sealsvc.linux import native

_TRIES, _PAUSE = 20, 0.01


def drop(fd: int) -> None:
    """Write back and drop every page. Refusal `try-later` when some stay: somebody uses them.
    POSIX_FADV_DONTNEED leaves what is dirty, mapped or under write-back, so the fsync before, and
    an exclusive seal, so that nobody makes others after."""
    os.fsync(fd)
    for _ in range(_TRIES):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if not (left := native.cached_pages(fd)):
            return
        time.sleep(_PAUSE)
    raise Refusal("try-later", f"{left} pages of the file stay in the page cache")
