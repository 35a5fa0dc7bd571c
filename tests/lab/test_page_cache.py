"""What is asked about the page cache of a DAX file, which has none."""

from __future__ import annotations

import mmap
import os

import pytest

from sealsvc.exports import page_cache
from sealsvc.linux import native
from tests.lab.pmem import mounted_dax

pytestmark = pytest.mark.lab


def test_the_kernel_is_not_asked_about_a_file_with_dax() -> None:
    """It would take the mapping's DAX entries for shadows of evicted pages, and oops: the process
    that asks is gone then."""
    with mounted_dax("xfs") as root:
        fd = os.open(root / "file", os.O_RDWR | os.O_CREAT)
        os.truncate(fd, 4 << 20)
        with mmap.mmap(fd, 4 << 20) as mapping:
            for offset in range(0, 4 << 20, 4096):
                mapping[offset] = 1
            assert native.dirty_pages(fd) == 0
            assert native.cached_pages(fd, 0, 4 << 20) == 0
            assert native.cached_pages(fd) == 0
        page_cache.drop(fd)
        os.close(fd)
