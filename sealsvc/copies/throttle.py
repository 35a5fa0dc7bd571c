"""A limit on bytes per second."""

from __future__ import annotations

import threading
import time

_SLICES = 8  # calls in one second at least


class Throttle:
    def __init__(self, rate: int | None) -> None:
        """`rate` in bytes per second; None: no limit."""
        self._rate = rate
        self._due = time.monotonic()

    def most(self, wanted: int) -> int:
        """How much of `wanted` bytes the next call should copy."""
        if self._rate is None:
            return wanted
        slice = max(4096, self._rate // _SLICES & -4096)
        return min(wanted, slice)

    def wait(self, size: int, cancel: threading.Event) -> None:
        """Until `size` more bytes may be copied, or the copy is cancelled."""
        if self._rate is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now - 1 / _SLICES)
        if self._due > now:
            cancel.wait(self._due - now)
        self._due += size / self._rate
