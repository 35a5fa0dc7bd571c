"""Requests that are sent again: carried out once, answered alike.

A client that lost an answer (a broken connection, a restart) repeats its request with the same key.
Answers are kept for a while in memory; a grant's key lives as long as its seal, also through a
restart, since the journal has the request.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from sealsvc import clock
from sealsvc.errors import Refusal
from sealsvc.messages import Keyed, Result

_MOST = 65536


@dataclass(slots=True)
class _Entry:
    digest: bytes
    until: float
    result: Result | None = None  # None: the first is still being carried out


class Once:
    """`seconds`: how long an answer is remembered."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._entries: OrderedDict[tuple[int, str], _Entry] = OrderedDict()

    def remember(self, user: int, request: Keyed, result: Result) -> None:
        self._entries[user, request.key] = _Entry(_digest(request), self._until(), result)

    async def run(
        self, user: int, request: Keyed, act: Callable[[], Awaitable[Result]]
    ) -> tuple[Result, bool]:
        """The result, and whether it is of an earlier request with the same key. A refusal is not
        remembered: the next one is a new attempt."""
        self._forget()
        name, digest = (user, request.key), _digest(request)
        if found := self._entries.get(name):
            if found.digest != digest:
                raise Refusal(
                    "bad-request", f"the key {request.key!r} belongs to a different request"
                )
            if found.result is None:
                raise Refusal(
                    "try-later",
                    f"the first request with the key {request.key!r} is still under way",
                    retry_after=0.1,
                )
            return found.result, True
        self._entries[name] = entry = _Entry(digest, self._until())
        try:
            entry.result = await act()
        except BaseException:
            self._entries.pop(name, None)
            raise
        return entry.result, False

    def _until(self) -> float:
        return clock.now() + self.seconds

    def _forget(self) -> None:
        now = clock.now()
        while self._entries:
            name, oldest = next(iter(self._entries.items()))
            if oldest.until > now and len(self._entries) < _MOST:
                return
            del self._entries[name]


def _digest(request: Keyed) -> bytes:
    same = msgspec.structs.replace(request, id=0, trace="")
    return hashlib.sha256(msgspec.msgpack.encode(same)).digest()
