"""Answers whose time does not tell what they are.

To find that a file is forbidden takes another time than to find that it is missing. Such an answer
is sent a whole number of steps after its request came, which is the same for both as long as the
work takes less than a step.
"""

from __future__ import annotations

import asyncio
import time

STEP = 0.025  # seconds
_GRAIN = 0.0012  # seconds


async def passes(began: float) -> None:
    """Return at the next whole number of STEPs after `began` (of time.monotonic)."""
    end = began + STEP * (1 + (time.monotonic() - began) // STEP)
    # epoll_wait(2) counts whole milliseconds from the moment it is called at, so that the time of
    # the work would show below a millisecond: the last one is not slept.
    await asyncio.sleep(max(0.0, end - time.monotonic() - _GRAIN))
    while time.monotonic() < end:  # noqa: ASYNC110 (there is no event but the time)
        await asyncio.sleep(0)
