"""Where a file system's device lies in physical memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sealsvc.linux.host import pmem


def some_device() -> int:
    for found in Path("/sys/dev/block").glob("*:*"):
        major, minor = found.name.split(":")
        return os.makedev(int(major), int(minor))
    pytest.skip("no block device here")


def test_a_region_begins_where_the_device_does_and_is_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = some_device()
    monkeypatch.setattr(pmem, "base_of", lambda asked: 1 << 32 if asked == device else 0)
    size = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/size").read_text()
    assert pmem.region_of(device) == (1 << 32, int(size) * 512)


def test_what_is_not_persistent_memory_has_none() -> None:
    assert pmem.region_of(some_device()) is None


def test_what_is_not_there_has_none() -> None:
    assert pmem.region_of(os.makedev(4095, 1 << 19)) is None
