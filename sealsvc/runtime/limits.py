"""Limits on what one user may ask for, and fair queueing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sealsvc.core.errors import Refusal
from sealsvc.core.token_buckets import Empty, TokenBuckets
from sealsvc.runtime import clock

_MOST = 65536  # users whose buckets are kept

# To whose share a request is counted: a uid, and the principal of the REST API that it asks for
# (lifecycle/policy.py: Policy.asker).
Asked = tuple[int, str]


def name_of(asker: Asked) -> str:
    uid, principal = asker
    return principal or f"user {uid}"


def leaves_as_many(mine: int, taken: int, most: int) -> bool:
    """Whether a user that has `mine` of the `taken` units may take one more. `most` is the total.
    It may if at least as many as it has then remain for all others, so that whatever some users
    take, something is left for the next."""
    return mine + 1 <= most - taken - 1


class RateLimit:
    """Limits what each user asks for to `rate` per second on average (0: no limit), and `burst` at
    once."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._buckets: TokenBuckets[Asked] = TokenBuckets(clock.now, _MOST)

    def take(self, user: Asked) -> None:
        """Count a request. Raises Refusal `limit-reached`, with the seconds until the next may
        come."""
        if not self.rate:
            return
        try:
            self._buckets.take(user, self.rate, self.burst)
        except Empty as empty:
            raise Refusal(
                "limit-reached",
                f"{name_of(user)} asks for more than policy.grants_per_second, {self.rate:g}",
                {"rate": self.rate, "burst": self.burst},
                retry_after=empty.wait,
            ) from None


class FairQueue:
    """A semaphore with `slots` units that serves waiting users in turn, however much each has asked
    for. The requests of one user are served in order."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: dict[Asked, deque[asyncio.Future[None]]] = {}  # in order of turns

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return sum(len(queue) for queue in self._waiting.values())

    @asynccontextmanager
    async def turn(self, user: Asked) -> AsyncIterator[None]:
        """A context that holds a slot; waits for the user's turn."""
        if self._free and not self._waiting:
            self._free -= 1
        else:
            await self._wait(user)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, user: Asked) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(user, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self._pass_on()  # the slot was given to this request already
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            user, queue = next(iter(self._waiting.items()))
            del self._waiting[user]
            chosen = queue.popleft()
            if queue:
                self._waiting[user] = queue  # at the end, behind all other users
            if not chosen.done():
                chosen.set_result(None)
                return
        self._free += 1
