"""Is the event loop in time? A task measures how late it is; a thread looks what it is stuck in.

The delay of a timer is what every request waits for besides. Each is counted (loop_lag among the
measures). When the loop has not run for `_STUCK` seconds, the stack of its thread goes to the log,
once for each time it is stuck, and the alarm is raised when it runs again.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

log = logging.getLogger(__name__)

_INTERVAL = 0.1  # seconds
_STUCK = 1.0
_DUMP_PAUSE = 10.0  # seconds between two stacks in the log


class LoopWatch:
    """`lag` is told each delay in seconds, `alarm` what an operator should know; on the loop."""

    def __init__(self, lag: Callable[[float], None], alarm: Callable[[str], None]) -> None:
        self._lag, self._alarm = lag, alarm
        self._seen = time.monotonic()
        self._dumped = -_DUMP_PAUSE
        self._stopped = threading.Event()
        self._loop_thread = 0

    async def run(self) -> None:
        """Until it is cancelled."""
        self._loop_thread = threading.get_ident()
        self._seen = time.monotonic()
        threading.Thread(target=self._watch, name="loop-watch", daemon=True).start()
        try:
            while True:
                due = time.monotonic() + _INTERVAL
                await asyncio.sleep(_INTERVAL)
                self._seen = time.monotonic()
                self._measured(max(0.0, self._seen - due))
        finally:
            self._stopped.set()

    def _measured(self, late: float) -> None:
        self._lag(late)
        if late >= _STUCK:
            self._alarm(
                f"the event loop did nothing for {late:.1f} s: every request, recall and fence was"
                " late by as much; the log has where it was stuck"
            )

    def _watch(self) -> None:
        reported = 0.0
        while not self._stopped.wait(_INTERVAL):
            seen, now = self._seen, time.monotonic()
            if now - seen < _STUCK or seen == reported or now - self._dumped < _DUMP_PAUSE:
                continue
            reported, self._dumped = seen, now
            where = stack_of(sys._current_frames().get(self._loop_thread))
            lines = where.splitlines()
            told = "the event loop is stuck for %.1f s in:" + "\n%s" * len(lines)
            log.error(told, now - seen, *lines)


def stack_of(frame: FrameType | None) -> str:
    return "".join(traceback.format_stack(frame)) if frame else "a thread that has ended"
