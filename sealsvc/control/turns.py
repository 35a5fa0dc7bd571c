"""Reads the connections of each user in turns, so that no user keeps the event loop from others.

Each user's connections are in an epoll set of its own (epoll(7)), and the event loop watches these
sets. So a turn of the loop costs as much as there are users at work, however many connections each
has that could be read. The kernel puts a socket that stays readable at the end of its set, so that
the connections of one user take turns, too.

How many messages of a user are read in one turn follows from the time on the loop that its earlier
ones took, with all that their requests did there (Metered).
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any

from sealsvc.runtime.users import User

MESSAGES = 8  # of one user that are read in one turn of the loop, at most
TIME = 0.0001  # seconds of one turn for one user's messages; one of them is always read
_KEPT = 0.9  # the part of what is known of earlier turns that each turn keeps

# Reads one message; false when there was none, or when nothing more may be read.
Read = Callable[[], bool]


class Metered:
    """Awaits `work`, and adds the time that its steps take on the event loop to `user.spent`."""

    def __init__(self, work: Coroutine[Any, Any, None], user: User) -> None:
        self._work, self._user = work, user

    def __await__(self) -> Generator[Any, Any, None]:
        error: BaseException | None = None
        while True:
            began = time.perf_counter()
            try:
                awaited = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration:
                return
            finally:
                self._user.spent += time.perf_counter() - began
            error = None
            try:
                yield awaited
            except BaseException as thrown:  # CancelledError, for one
                error = thrown


class _Set:
    """The connections of one user."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._epoll = select.epoll()
        self._reads: dict[int, Read] = {}
        self._messages = self._spent = 0.0  # of earlier turns
        asyncio.get_running_loop().add_reader(self._epoll, self._turn)

    def add(self, fd: int, read: Read) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._reads[fd] = read

    def remove(self, fd: int) -> bool:
        """True when none is left."""
        if self._reads.pop(fd, None) is not None:
            with suppress(OSError):
                self._epoll.unregister(fd)
        return not self._reads

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll)
        self._epoll.close()

    def _turn(self) -> None:
        began, left = time.perf_counter(), self._share()
        readable = [fd for fd, _ in self._epoll.poll(0, left)]
        while readable and left > 0:
            more = []
            for fd in readable[:left]:
                read = self._reads.get(fd)  # none: an earlier message has ended it
                left -= 1
                self._messages += 1
                if read is not None and read():
                    more.append(fd)
            readable = more
        self._user.spent += time.perf_counter() - began

    def _share(self) -> int:
        """The number of messages that fit into TIME."""
        self._spent, self._user.spent = self._spent * _KEPT + self._user.spent, 0.0
        fitting = int(TIME * self._messages / self._spent) if self._spent else MESSAGES
        self._messages *= _KEPT
        return max(1, min(MESSAGES, fitting))


class Turns:
    """The sets of all users that have connections. For the event loop alone."""

    def __init__(self) -> None:
        self._sets: dict[int, _Set] = {}

    def add(self, user: User, fd: int, read: Read) -> None:
        """Call `read` when the socket can be read. Raises OSError when no descriptor is left."""
        found = self._sets.get(user.uid)
        if found is None:
            found = self._sets[user.uid] = _Set(user)
        found.add(fd, read)

    def remove(self, user: User, fd: int) -> None:
        """Ignored when the socket is not in the user's set. Call it before the socket is closed."""
        found = self._sets.get(user.uid)
        if found is not None and found.remove(fd):
            del self._sets[user.uid]
            found.close()
