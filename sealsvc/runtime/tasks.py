"""Owns all background tasks: a task that fails is logged and raises an alarm, and stop() ends those
that are left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

_PATIENCE = 2.0  # seconds in which cancelled tasks must end


class Tasks:
    """The running tasks. `alarm` is called with the text of an alarm."""

    def __init__(self, alarm: Callable[[str], None]) -> None:
        self._alarm = alarm
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, name: str, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task. `name` appears in the log and in alarms."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        if error := task.exception():
            log.error("task %s failed", task.get_name(), exc_info=error)
            self._alarm(f"task {task.get_name()} failed: {error!r}")

    async def stop(self) -> None:
        """Cancel all tasks, and wait up to _PATIENCE for them."""
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            # A task may wait for a thread that is stuck on a frozen file system. It leaves what a
            # service that is killed leaves, which the next service recovers.
            _, left = await asyncio.wait(self._tasks, timeout=_PATIENCE)
            for task in left:
                log.warning("%s does not end: it is left as it is", task.get_name())
