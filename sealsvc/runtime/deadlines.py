"""The deadlines of very many seals, in one heap with one task."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from sealsvc.runtime import clock
from sealsvc.runtime.tasks import Tasks

_LEAST = 256  # entries, below which none is looked for that is out of date
_FAR = 3600.0  # seconds that are waited at a time where there is no deadline


class Deadlines:
    """Waits for deadlines, each that of a `token` in a `round`; of a token, only the newest round
    counts. `reached(token, round)` is called when one has passed, and returns at once.
    `awaited(token, round)` says whether an entry
    still counts; the others are dropped now and then. Times are seconds of runtime/clock.py. Used
    on the event loop only."""

    def __init__(
        self,
        tasks: Tasks,
        reached: Callable[[int, int], None],
        awaited: Callable[[int, int], bool],
    ) -> None:
        self._tasks, self._reached, self._awaited = tasks, reached, awaited
        self._heap: list[tuple[float, int, int]] = []
        self._most = _LEAST  # entries, at which those that are out of date are dropped
        self._sooner = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, when: float, token: int, round: int) -> None:
        """Have `reached` called at `when`, or soon if that has passed."""
        if len(self._heap) >= self._most:
            self._heap = [entry for entry in self._heap if self._awaited(*entry[1:])]
            heapq.heapify(self._heap)
            self._most = max(_LEAST, 2 * len(self._heap))
        entry = (when, token, round)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._sooner.set()
        if self._task is None:
            self._task = self._tasks.spawn("deadlines", self._run())

    async def _run(self) -> None:
        while True:
            self._sooner.clear()
            first = self._heap[0][0] if self._heap else clock.now() + _FAR
            await clock.within(min(first, clock.now() + _FAR), self._sooner)
            while self._heap and self._heap[0][0] <= clock.now():
                _, token, round = heapq.heappop(self._heap)
                self._reached(token, round)
