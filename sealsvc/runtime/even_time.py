"""Prevents that the time of an answer reveals its cause.

Finding that a file is forbidden takes another time than finding that it is missing. Such an answer
is sent a whole number of steps after its request came, so that both take the same time as long as
the work takes less than a step.
"""

from __future__ import annotations

import asyncio
import time

STEP = 0.025  # seconds
_GRAIN = 0.0012  # seconds; the granularity of epoll_wait(2), with a margin


async def passes(began: float) -> None:
    """Return at the next whole number of STEPs after `began` (seconds of time.monotonic)."""
    end = began + STEP * (1 + (time.monotonic() - began) // STEP)
    # epoll_wait(2) waits for whole milliseconds from its call on, so that the time of the work
    # would be visible in fractions of a millisecond. So the last one is polled instead.
    await asyncio.sleep(max(0.0, end - time.monotonic() - _GRAIN))
    while time.monotonic() < end:  # noqa: ASYNC110 (there is no event but the time)
        await asyncio.sleep(0)
