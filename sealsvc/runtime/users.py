"""Counts what each user (uid) takes of the service, and limits it.

Connections, requests and descriptors, which others could run out of, are counted by the uid that
the kernel vouches for. A user at a limit gets a Refusal `limit-reached`, whose details name the
limit, and an alarm is raised. Users that have nothing are dropped, so that the table is bounded by
the number of connections.
"""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from sealsvc.core.errors import Refusal
from sealsvc.runtime import clock, closing
from sealsvc.runtime.config import LimitsSection
from sealsvc.runtime.workers import Workers

T = TypeVar("T")

# A user may have at most RLIMIT_NOFILE / PART connections, and as many descriptors.
PART = 16
THREADS = 4  # threads for each user
PATIENCE = 5.0  # seconds for a call that looks at what a user sent
_ALARM_PAUSE = 60.0  # seconds between two alarms about the same user and limit
_MOST_ALARMS = 64  # alarms, of all users together, in that time


@dataclass(slots=True, eq=False)
class User:
    """What one user has. `descriptors` counts those that are in a Received: received, and neither
    taken out for use nor closed yet."""

    uid: int
    connections: int = 0
    requests: int = 0
    descriptors: int = 0
    spent: float = 0.0  # seconds on the event loop since its last turn (control/turns.py)
    # What is closed in its threads. Sockets have others than descriptors, whose closing a user can
    # delay more easily.
    received: closing.Pile = field(init=False)
    made: closing.Pile = field(init=False)
    sockets: closing.Pile = field(init=False)

    def closed_by(self, give_back: Callable[[User, str, int], None]) -> User:
        """Count what was closed: `give_back` is Users.give_back."""
        self.made = closing.Pile(("user", self.uid))
        self.received = closing.Pile(("user", self.uid), partial(give_back, self, "descriptors"))
        self.sockets = closing.Pile(("sockets", self.uid), partial(give_back, self, "connections"))
        return self

    @property
    def idle(self) -> bool:
        return not (self.connections or self.requests or self.descriptors)

    def close_later(self, fds: Iterable[int]) -> None:
        """Close descriptors that were received from this user, or made for it, in its threads.
        Called on the event loop. Never blocks."""
        self.made.add(fds)


@dataclass(slots=True)
class Overruns:
    """Counts refusals by limit, and raises alarms, but not for each refusal."""

    alarm: Callable[[str], None]
    counts: Counter[str] = field(default_factory=Counter)
    _told: dict[tuple[int, str], float] = field(default_factory=dict)

    def add(self, uid: int, limit: str, most: int) -> None:
        """Count a refusal of `uid` at `limit`, whose value is `most`; raise an alarm if there was
        none about both within _ALARM_PAUSE."""
        self.counts[limit] += 1
        now = clock.now()
        if self._told.get((uid, limit), 0.0) > now - _ALARM_PAUSE:
            return
        if len(self._told) >= _MOST_ALARMS:
            self._told = {key: at for key, at in self._told.items() if at > now - _ALARM_PAUSE}
        if len(self._told) < _MOST_ALARMS:
            self._told[uid, limit] = now
            self.alarm(f"user {uid} is at limits.{limit} = {most}: further ones are refused")


class Users:
    """All users. `exempt(uid)` is true for operators, who are bound only by the limits on all users
    together."""

    def __init__(
        self, section: LimitsSection, exempt: Callable[[int], bool], alarm: Callable[[str], None]
    ) -> None:
        """Connections and descriptors are limited by RLIMIT_NOFILE as well: a connection takes two
        descriptors, and a few users at their limits must leave enough for seals and for others."""
        self.section, self._exempt = section, exempt
        share = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // PART
        self._most = {
            "connections": min(section.connections_per_user, share),
            "requests": section.requests_per_user,
            "descriptors": min(section.descriptors_per_user, share),
        }
        self.overruns = Overruns(alarm)
        self.connections = 0  # of all users, until their sockets are closed
        self._users: dict[int, User] = {}
        self._workers = Workers(THREADS)

    def of(self, uid: int) -> User:
        """The record of a user, made if there is none."""
        user = self._users.get(uid)
        if user is None:
            user = self._users[uid] = User(uid).closed_by(self.give_back)
        return user

    def take(self, user: User, what: str, count: int = 1) -> None:
        """Count `count` more "connections", "requests" or "descriptors". Raises Refusal
        `limit-reached`."""
        has: int = getattr(user, what)
        if has + count > self._most[what] and not self._exempt(user.uid):
            self.refuse(user, f"{what}_per_user", self._most[what])
        self.count(user, what, count)

    def count(self, user: User, what: str, count: int = 1) -> None:
        """As take(), without a limit."""
        setattr(user, what, getattr(user, what) + count)
        if what == "connections":
            self.connections += count
        self._users[user.uid] = user

    def refuse_more_descriptors(self, user: User) -> None:
        """Raises Refusal `limit-reached` when the user may not send even one more descriptor."""
        self.take(user, "descriptors", 1)
        user.descriptors -= 1

    def refuse(self, user: User, limit: str, most: int) -> None:
        """Count a refusal, and raise Refusal `limit-reached`."""
        self.overruns.add(user.uid, limit, most)
        self._forget_if_idle(user)
        raise Refusal(
            "limit-reached",
            f"user {user.uid} is at limits.{limit} = {most}",
            {"limit": limit, "most": most},
            retry_after=1.0,
        )

    def give_back(self, user: User, what: str, count: int = 1) -> None:
        """Undo take()."""
        setattr(user, what, getattr(user, what) - count)
        if what == "connections":
            self.connections -= count
        self._forget_if_idle(user)

    def _forget_if_idle(self, user: User) -> None:
        if user.idle and self._users.get(user.uid) is user:
            del self._users[user.uid]

    async def look(self, user: User, function: Callable[..., T], *arguments: object) -> T:
        """Call `function`, which looks at something that a user sent, in one of that user's
        threads, because even reading fdinfo may block (fs/eventpoll.c: ep_show_fdinfo takes the
        mutex that epoll_wait of the sender holds while it writes into memory of the sender's
        choice). Raises Refusal `try-later` after PATIENCE seconds."""
        looking = self._workers.of(user.uid).submit(function, *arguments)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(looking), PATIENCE)
        except TimeoutError:
            raise Refusal(
                "try-later",
                f"what was sent could not be looked at within {PATIENCE:g} s",
                retry_after=PATIENCE,
            ) from None

    async def fetch(self, user: User, function: Callable[..., int], *arguments: object) -> int:
        """As look(), for a call that returns a descriptor: if that comes too late, it is closed."""
        looking = self._workers.of(user.uid).submit(function, *arguments)
        waiting = asyncio.shield(wrapped := asyncio.wrap_future(looking))
        try:
            return await asyncio.wait_for(waiting, PATIENCE)
        except BaseException as error:
            wrapped.add_done_callback(partial(_close_late, user))
            if isinstance(error, TimeoutError):
                raise Refusal(
                    "try-later",
                    f"no descriptor could be had within {PATIENCE:g} s",
                    retry_after=PATIENCE,
                ) from None
            raise


def _close_late(user: User, done: asyncio.Future[int]) -> None:
    if not done.cancelled() and done.exception() is None:
        user.close_later([done.result()])


class Received:
    """The descriptors of one message, and their owner from the moment they are read. `close`, which
    is called at the end of the request in any case, closes those that were not taken out."""

    __slots__ = ("_fds", "_user", "_users")

    def __init__(self, fds: list[int], user: User, users: Users) -> None:
        """Takes ownership of `fds`."""
        self._fds, self._user, self._users = fds, user, users
        user.descriptors += len(fds)

    def __len__(self) -> int:
        return len(self._fds)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The descriptors, to look at. Their owner does not change."""
        return tuple(self._fds)

    def pop(self) -> int:
        """Take the last descriptor out. The caller owns it, and closes it by User.close_later or in
        a worker thread."""
        fd = self._fds.pop()
        self._users.give_back(self._user, "descriptors")
        return fd

    def close(self) -> None:
        """Close the descriptors in the user's threads. They are counted until that is done."""
        fds, self._fds = self._fds, []
        self._user.received.add(fds)
