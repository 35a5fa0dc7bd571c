"""The clock of seals: CLOCK_BOOTTIME, which includes suspend and is not affected by changes of the
wall clock.

Timers of the event loop use CLOCK_MONOTONIC, which stops during suspend. So all waits of this
module are woken when the difference of the two clocks has changed (`look_for_jumps`, which the
housekeeping calls), and check the time again.
"""

from __future__ import annotations

import asyncio
import time

from sealsvc.runtime.flag import Flag

_TOLERANCE = 0.01  # seconds, because the two clocks are not read at the same instant

_WORTH_TELLING = 10.0  # seconds by which the wall clock must jump to be reported

_ahead = 0.0
_sleepers: set[asyncio.Future[None]] = set()


def now() -> float:
    """Seconds since boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) + _ahead


def _offset() -> float:
    return now() - time.monotonic()


_last_offset = _offset()


def advance(seconds: float) -> None:
    """Advance the clock by `seconds`. For the simulated system only."""
    global _ahead
    _ahead += seconds
    look_for_jumps()


def look_for_jumps() -> None:
    """Wake all waits if this clock and that of the event loop have drifted apart since the last
    call."""
    global _last_offset
    offset = _offset()
    if abs(offset - _last_offset) < _TOLERANCE:
        return
    _last_offset = offset
    for sleeper in tuple(_sleepers):
        if not sleeper.done():
            sleeper.set_result(None)


class WallClock:
    """Detects that the wall clock was set: otherwise its difference to CLOCK_BOOTTIME is nearly
    constant."""

    def __init__(self) -> None:
        self._offset = self._now()

    @staticmethod
    def _now() -> float:
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def jump(self) -> float:
        """Seconds by which the wall clock was set ahead (negative: back) since the last call; 0
        when that is less than _WORTH_TELLING, as corrections by NTP usually are."""
        found = self._now()
        jumped, self._offset = found - self._offset, found
        return jumped if abs(jumped) >= _WORTH_TELLING else 0.0


async def within(deadline: float, *events: asyncio.Event | Flag) -> bool:
    """Wait until one of the events is set, or until `deadline` (seconds of this clock). False when
    the deadline has passed without an event."""
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
