"""The clock of seals: CLOCK_BOOTTIME, which goes on through suspend and no wall-clock jump moves.

Timers of the event loop run on CLOCK_MONOTONIC, which stands still in suspend. So whoever waits
for a moment of this clock is woken when the two have parted (`look_for_jumps`, from housekeeping),
and looks again.
"""

from __future__ import annotations

import asyncio
import time

_TOLERANCE = 0.01  # seconds; the two are not read at the same instant

_WORTH_TELLING = 10.0  # seconds

_ahead = 0.0
_sleepers: set[asyncio.Future[None]] = set()


def now() -> float:
    """Seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) + _ahead


def _offset() -> float:
    return now() - time.monotonic()


_last_offset = _offset()


def advance(seconds: float) -> None:
    """For the simulated system alone: so much time passes."""
    global _ahead
    _ahead += seconds
    look_for_jumps()


def look_for_jumps() -> None:
    """Wake all who wait when this clock has run on without the event loop's."""
    global _last_offset
    offset = _offset()
    if abs(offset - _last_offset) < _TOLERANCE:
        return
    _last_offset = offset
    for sleeper in tuple(_sleepers):
        if not sleeper.done():
            sleeper.set_result(None)


class WallClock:
    """Notices that the wall clock was set: it and CLOCK_BOOTTIME go on alike but for that."""

    def __init__(self) -> None:
        self._offset = self._now()

    @staticmethod
    def _now() -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def jump(self) -> float:
        """Seconds by which it was set ahead (negative: back) since the last call; 0 when that is
        less than what NTP corrects without a step worth telling."""
        found = self._now()
        jumped, self._offset = found - self._offset, found
        return jumped if abs(jumped) >= _WORTH_TELLING else 0.0


async def within(deadline: float, *events: asyncio.Event) -> bool:
    """Wait for one of the events until the moment `deadline`; False when none came."""
    while not any(event.is_set() for event in events):
        left = deadline - now()
        if left <= 0:
            return False
        jump = asyncio.get_running_loop().create_future()
        _sleepers.add(jump)
        waits = [jump, *(asyncio.ensure_future(event.wait()) for event in events)]
        try:
            await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            _sleepers.discard(jump)
            for wait in waits:
                wait.cancel()
    return True
