"""Reads the connections of each user in turns, so that no user keeps the event loop from others.

Each user's connections are in an epoll set of its own (epoll(7)), and the event loop watches these
sets. So a turn of the loop costs as much as there are users at work, however many connections each
has that could be read. The kernel puts a socket that stays readable at the end of its set, so that
the connections of one user take turns, too.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from contextlib import suppress

MESSAGES = 8  # of one user that are read in one turn of the loop
TIME = 0.002  # seconds of one turn for one user's messages

# Reads one message; false when there was none, or when nothing more may be read.
Read = Callable[[], bool]


class _Set:
    """The connections of one user."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._reads: dict[int, Read] = {}
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
        end, left = time.monotonic() + TIME, MESSAGES
        readable = [fd for fd, _ in self._epoll.poll(0, left)]
        while readable and left > 0:
            more = []
            for fd in readable[:left]:
                read = self._reads.get(fd)  # none: an earlier message has ended it
                left -= 1
                if read is not None and read():
                    more.append(fd)
                if time.monotonic() >= end:
                    return
            readable = more


class Turns:
    """The sets of all users that have connections. For the event loop alone."""

    def __init__(self) -> None:
        self._sets: dict[int, _Set] = {}

    def add(self, uid: int, fd: int, read: Read) -> None:
        """Call `read` when the socket can be read. Raises OSError when no descriptor is left."""
        found = self._sets.get(uid)
        if found is None:
            found = self._sets[uid] = _Set()
        found.add(fd, read)

    def remove(self, uid: int, fd: int) -> None:
        """Ignored when the socket is not in the user's set. Call it before the socket is closed."""
        found = self._sets.get(uid)
        if found is not None and found.remove(fd):
            del self._sets[uid]
            found.close()
