"""How much one user may ask for at a time, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sealsvc.core.errors import Refusal
from sealsvc.runtime import clock

_MOST = 65536  # users whose buckets are kept


def leaves_as_many(mine: int, taken: int, most: int) -> bool:
    """Whether who has `mine` of the `taken` may have one more, of `most` that there may be: as many
    as it has then must be left for others. So there is something for the next, whatever some
    take."""
    return mine + 1 <= most - taken - 1


class RateLimit:
    """A token bucket for each user: `rate` a second on average (0: no limit), `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        # Tokens, and when they were counted: who took one last comes last.
        self._buckets: OrderedDict[int, tuple[float, float]] = OrderedDict()

    def take(self, user: int) -> None:
        """Raises limit-reached, with the seconds until the next may be taken."""
        if not self.rate:
            return
        now = clock.now()
        tokens, since = self._buckets.get(user, (float(self.burst), now))
        tokens = min(self.burst, tokens + (now - since) * self.rate)
        if tokens < 1:
            raise Refusal(
                "limit-reached",
                f"user {user} asks for more than policy.grants_per_second, {self.rate:g}",
                {"rate": self.rate, "burst": self.burst},
                retry_after=(1 - tokens) / self.rate,
            )
        self._buckets[user] = (tokens - 1, now)
        self._buckets.move_to_end(user)
        if len(self._buckets) > _MOST:  # the one that has refilled the longest
            self._buckets.popitem(last=False)


class FairQueue:
    """At most `slots` at work. Of those who wait each user has its turn, whatever the others
    asked for; one user's own are served in order."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}  # in order of turns

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values())

    @asynccontextmanager
    async def turn(self, user: int) -> AsyncIterator[None]:
        if self._free and not self._waiting:
            self._free -= 1
        else:
            await self._wait(user)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, user: int) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()  # it was our turn, and nobody takes it
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            user, queue = next(iter(self._waiting.items()))
            del self._waiting[user]
            chosen = queue.popleft()
            if queue:
                self._waiting[user] = queue  # behind all others
            if not chosen.done():
                chosen.set_result(None)
                return
        self._free += 1
