"""Idempotency (a duplicate request cache): a request that is repeated with its key is carried out
once, and gets the same answer.

A client that lost an answer (a broken connection, a restart) repeats its request with the same key.
Answers are kept in memory for a limited time. The answer to a grant is kept as long as its seal is
live, also over a restart, because the journal has the requester and a digest of the request.

Keys are counted per user, and those of an operator that asks on behalf of principals (the REST API)
per principal. One that uses more than its share loses its own oldest keys.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.protocol import codec
from sealsvc.protocol.base import Keyed
from sealsvc.protocol.messages import Result
from sealsvc.protocol.seals import SealInfo
from sealsvc.runtime import clock
from sealsvc.runtime.limits import Asked

KEYS = 65536  # of all users together; answers that are kept for live seals are not counted
KEYS_PER_USER = 8192
_SWEPT = 4  # users, and kept answers of grants, that one call looks at to forget what is over

_IDENTITY = re.compile(rb"^(?:mnt_id|ino|Pid):.*$", re.M)


@dataclass(slots=True)
class _Entry:
    digest: bytes
    until: float  # seconds, runtime/clock.py
    result: Result | None = None  # None: the first request is still being carried out


class ReplyCache:
    """Remembers answers by user and key, for `seconds`. `is_live(id)` tells whether a seal is
    live. `keys` and `keys_per_user` are the limits."""

    def __init__(
        self,
        seconds: float,
        is_live: Callable[[str], bool] = lambda _: False,
        *,
        keys: int = KEYS,
        keys_per_user: int = KEYS_PER_USER,
    ) -> None:
        self.seconds, self._is_live = seconds, is_live
        self._keys, self._keys_per_user = keys, keys_per_user
        # The entries of each user in order of age, and the number of all entries.
        self._users: dict[Asked, OrderedDict[str, _Entry]] = {}
        self._count = 0
        # Answers to grants that were dropped from `_users` while their seal was live.
        self._granted: OrderedDict[tuple[Asked, str], _Entry] = OrderedDict()

    def remember(self, user: Asked, key: str, digest: bytes, result: Result) -> None:
        """Enter the answer to a request that was carried out before."""
        self._put(user, key, _Entry(digest, self._until(), result))

    async def run(
        self, user: Asked, request: Keyed, digest: bytes, act: Callable[[], Awaitable[Result]]
    ) -> tuple[Result, bool]:
        """Carry out `act` unless an earlier request had the same key. Returns the result, and
        whether it is that of the earlier request. `digest` is digest_of(request).

        Raises what `act` raises, which is not remembered, so that the next request is a new
        attempt. Raises Refusal `bad-request` when the key was used with another digest, `try-later`
        while the first request is under way."""
        self._forget()
        if found := self._find(user, request.key):
            if found.digest != digest:
                raise Refusal(
                    "bad-request", "this idempotency key was used with a different request"
                )
            if found.result is None:
                raise Refusal(
                    "try-later",
                    "the first request with this idempotency key is still under way",
                    retry_after=0.1,
                )
            return found.result, True
        entry = _Entry(digest, self._until())
        self._put(user, request.key, entry)
        try:
            entry.result = await act()
        except BaseException:
            if self._find(user, request.key) is entry:
                self._remove(user, request.key)
            raise
        return entry.result, False

    def _until(self) -> float:
        return clock.now() + self.seconds

    def _find(self, user: Asked, key: str) -> _Entry | None:
        mine = self._users.get(user)
        return (mine and mine.get(key)) or self._granted.get((user, key))

    def _put(self, user: Asked, key: str, entry: _Entry) -> None:
        mine = self._users.setdefault(user, OrderedDict())
        mine[key] = entry
        self._count += 1
        if len(mine) > self._keys_per_user:
            self._drop_oldest(user)
        elif self._count > self._keys:
            self._drop_oldest(max(self._users, key=lambda user: len(self._users[user])))

    def _remove(self, user: Asked, key: str) -> _Entry:
        mine = self._users[user]
        entry = mine.pop(key)
        self._count -= 1
        if not mine:
            del self._users[user]
        return entry

    def _drop_oldest(self, user: Asked) -> None:
        """Drop the user's oldest entry. One that is still being carried out is dropped only if the
        user has no other."""
        mine = self._users[user]
        over = (key for key, entry in mine.items() if entry.result is not None)
        key = next(over, next(iter(mine)))
        entry = self._remove(user, key)
        if isinstance(entry.result, SealInfo) and self._is_live(entry.result.id):
            self._granted[user, key] = entry

    def _forget(self) -> None:
        """Drop expired entries of the next _SWEPT users, and, of the next _SWEPT kept answers of
        grants, those whose seal has ended."""
        now = clock.now()
        for _ in range(_SWEPT):
            if not self._users:
                break
            user = next(iter(self._users))
            mine = self._users.pop(user)
            self._users[user] = mine  # at the end: its turn comes again after those of all others
            while mine and next(iter(mine.values())).until <= now:
                self._drop_oldest(user)
        for _ in range(min(_SWEPT, len(self._granted))):
            name, entry = self._granted.popitem(last=False)
            assert isinstance(entry.result, SealInfo)
            if self._is_live(entry.result.id):
                self._granted[name] = entry


def digest_of(request: Keyed, fds: Sequence[int] = ()) -> bytes:
    """A SHA-256 digest of the request and of the descriptors that were sent with it. Of these it
    takes mount, inode and process as /proc/self/fdinfo has them (`ino` since Linux 5.14), which
    needs no call to their file systems; reading it may block nevertheless (runtime/users.py).
    Raises OSError."""
    same = msgspec.structs.replace(request, id=0, trace="")
    digest = hashlib.sha256(codec.encoded(same, msgspec.msgpack.encode))
    for fd in fds:
        found = _IDENTITY.findall(Path(f"/proc/self/fdinfo/{fd}").read_bytes())
        digest.update(b"\n".join([b"", *found]))
    return digest.digest()
