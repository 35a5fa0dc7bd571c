"""A flag that tasks can wait for, small enough for each of very many seals to have two."""

from __future__ import annotations

import asyncio


class Flag:
    """As an asyncio.Event that is never cleared: it has a future only while somebody waits (an
    Event has 0.8 KB from the start). Used on the event loop only."""

    __slots__ = ("_is_set", "_waiting")

    def __init__(self) -> None:
        self._is_set = False
        self._waiting: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Set it, and wake who waits. Nothing more the second time."""
        self._is_set = True
        if self._waiting is not None:
            self._waiting.set_result(None)
            self._waiting = None

    async def wait(self) -> None:
        """Wait until it is set."""
        if not self._is_set:
            if self._waiting is None:
                self._waiting = asyncio.get_running_loop().create_future()
            # One future for all who wait: the cancelling of one must not end it for the others.
            await asyncio.shield(self._waiting)
