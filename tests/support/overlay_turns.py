"""Turns between test processes: a test that mounts overlays which may reach any file runs alone.

A grant is refused while it is not known whether an overlay reaches its file (docs/environment.md),
so such an overlay of one test would fail the grants of another process's tests.
"""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LONGEST = 3600.0  # seconds that a test waits for those of others


@contextmanager
def _untimed() -> Iterator[None]:
    """What a test waits for others is none of its own time: the clock of pytest-timeout, which is
    the alarm of setitimer(2), stands still."""
    left, _ = signal.getitimer(signal.ITIMER_REAL)
    if not left:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, _LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left)


class OverlayTurns:
    """Locks of files (flock(2)): whoever mounts overlays waits for all others. `_queue` is held
    while one waits, so that new ones do not overtake it."""

    def __init__(self) -> None:
        directory = Path(tempfile.gettempdir())
        self._queue, self._lock = (
            os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            for name in ("sealsvc-overlays.queue", "sealsvc-overlays.lock")
        )

    @contextmanager
    def turn(self, *, alone: bool) -> Iterator[None]:
        with _untimed():
            fcntl.flock(self._queue, fcntl.LOCK_EX)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            finally:
                fcntl.flock(self._queue, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._queue)
        os.close(self._lock)
