"""Idempotency: a request that is sent again with its key is carried out once and answered alike.

A client that lost an answer (a broken connection, a restart) repeats its request with the same key.
An answer is kept in memory for a while; the answer to a grant is kept as long as its seal lives,
also through a restart, since the journal has who asked and a digest of what was asked.

Keys are counted per user, and those of a user who asks for principals (the REST API) per principal:
who uses more than its share loses its own oldest ones.
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
from sealsvc.lifecycle.policy import Asked
from sealsvc.protocol import codec
from sealsvc.protocol.base import Keyed
from sealsvc.protocol.messages import Result
from sealsvc.protocol.seals import SealInfo
from sealsvc.runtime import clock

KEYS = 65536  # remembered for all users together, those of live seals apart
KEYS_PER_USER = 8192
_SWEPT = 4  # answers of seals that are looked at in one call

_IDENTITY = re.compile(rb"^(?:mnt_id|ino|Pid):.*$", re.M)


@dataclass(slots=True)
class _Entry:
    digest: bytes
    until: float
    result: Result | None = None  # None: the first is still being carried out


class Once:
    """`seconds`: how long an answer is remembered. `is_live(id)`: does the seal still live?"""

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
        # Each user's in order of age, and the number of all of them.
        self._users: dict[Asked, OrderedDict[str, _Entry]] = {}
        self._count = 0
        # The answers of grants that outlived `seconds`, or their user's share, with their seal.
        self._granted: OrderedDict[tuple[Asked, str], _Entry] = OrderedDict()

    def remember(self, user: Asked, key: str, digest: bytes, result: Result) -> None:
        self._put(user, key, _Entry(digest, self._until(), result))

    async def run(
        self, user: Asked, request: Keyed, digest: bytes, act: Callable[[], Awaitable[Result]]
    ) -> tuple[Result, bool]:
        """The result, and whether it is of an earlier request with the same key. `digest` is
        digest_of(request). A refusal is not remembered: the next one is a new attempt."""
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
        """But for those that are still being carried out, if there are others."""
        mine = self._users[user]
        over = (key for key, entry in mine.items() if entry.result is not None)
        key = next(over, next(iter(mine)))
        entry = self._remove(user, key)
        if isinstance(entry.result, SealInfo) and self._is_live(entry.result.id):
            self._granted[user, key] = entry

    def _forget(self) -> None:
        """What is over: of each user's keys the oldest, a few at a time."""
        now = clock.now()
        for _ in range(_SWEPT):
            if not self._users:
                break
            user = next(iter(self._users))
            mine = self._users.pop(user)
            self._users[user] = mine  # its turn comes again after all others'
            while mine and next(iter(mine.values())).until <= now:
                self._drop_oldest(user)
        for _ in range(min(_SWEPT, len(self._granted))):
            name, entry = self._granted.popitem(last=False)
            assert isinstance(entry.result, SealInfo)
            if self._is_live(entry.result.id):
                self._granted[name] = entry


def digest_of(request: Keyed, fds: Sequence[int] = ()) -> bytes:
    """Of what is asked, and of the descriptors that were sent with it: which mount, inode and
    process they are of, as /proc/self/fdinfo tells (`ino` since v5.14) without asking their file
    systems, which may hang."""
    same = msgspec.structs.replace(request, id=0, trace="")
    digest = hashlib.sha256(codec.encoded(same, msgspec.msgpack.encode))
    for fd in fds:
        found = _IDENTITY.findall(Path(f"/proc/self/fdinfo/{fd}").read_bytes())
        digest.update(b"\n".join([b"", *found]))
    return digest.digest()
