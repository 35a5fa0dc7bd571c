"""Watches the event loop: a task measures how late it runs, a thread finds where it is stuck. The
thread starts worker threads as well that could not be started when there was work for them.

The delay of a timer is a delay of every request. Each is counted (loop_lag among the metrics). When
the loop has not run for `_STUCK` seconds, the stack of its thread is logged, once for each time,
and an alarm is raised when the loop runs again.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from sealsvc.runtime.workers import start_missing

log = logging.getLogger(__name__)

_INTERVAL = 0.1  # seconds between two measurements
_STUCK = 1.0  # seconds after which the loop counts as stuck
_DUMP_PAUSE = 10.0  # seconds between two stacks in the log, at least


class LoopWatch:
    """Measures delays. `lag` is called with each delay in seconds, `alarm` with the text of an
    alarm; both on the event loop."""

    def __init__(self, lag: Callable[[float], None], alarm: Callable[[str], None]) -> None:
        self._lag, self._alarm = lag, alarm
        self._seen = time.monotonic()
        self._dumped = -_DUMP_PAUSE
        self._stopped = threading.Event()
        self._loop_thread = 0
        self._without_threads = False

    async def run(self) -> None:
        """Watch until the task is cancelled."""
        self._loop = asyncio.get_running_loop()
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
            self._start_threads()
            seen, now = self._seen, time.monotonic()
            if now - seen < _STUCK or seen == reported or now - self._dumped < _DUMP_PAUSE:
                continue
            reported, self._dumped = seen, now
            where = stack_of(sys._current_frames().get(self._loop_thread))
            lines = where.splitlines()
            told = "the event loop is stuck for %.1f s in:" + "\n%s" * len(lines)
            log.error(told, now - seen, *lines)

    def _start_threads(self) -> None:
        missing = start_missing()
        if missing and not self._without_threads:
            reason = (
                f"no thread can be started (pids.max, RLIMIT_NPROC or memory): {missing} kinds of"
                " work wait for one"
            )
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._alarm, reason)
        self._without_threads = bool(missing)


def stack_of(frame: FrameType | None) -> str:
    """The stack of a thread, whose innermost frame this is, as text with several lines."""
    return "".join(traceback.format_stack(frame)) if frame else "a thread that has ended"
