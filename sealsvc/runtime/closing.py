"""Closes descriptors in threads, because close(2) may block.

close(2) calls the file's ->flush; dropping the last reference calls its ->release, and may evict
the inode (fs/open.c filp_close, fs/file_table.c __fput). On FUSE and NFS these wait for a server,
on a frozen file system for the thaw, on ext4 for the truncation of a deleted file. So the event
loop never closes a descriptor that another program opened, sent or can reach; it passes it to a
daemon thread. Each key (a user, a device) has its own threads, so that one that blocks delays no
other.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from sealsvc.runtime.workers import Workers

_THREADS = 2  # for each key
_PAUSE = 0.02  # seconds between two times that a pile wakes a thread

_pools = Workers(_THREADS)
_piles: WeakSet[Pile] = WeakSet()


def close_later(key: Hashable, fds: Iterable[int]) -> None:
    """Close descriptors in a thread of `key`. Takes ownership of them. Never blocks."""
    for fd in fds:
        call_later(key, os.close, fd)


def call_later(key: Hashable, function: Callable[..., Any], *arguments: object) -> Future[Any]:
    """Call `function` in a thread of `key`; for other calls that close something, such as a socket
    whose queue may hold descriptors. Never blocks. The Future is done when the call has ended."""
    return _pools.of(("closing", key)).submit(function, *arguments)


class Pile:
    """Descriptors of one key that the event loop has done with. They are passed to the threads
    together, every _PAUSE seconds where there are many: to wake a thread costs more than to close a
    descriptor, and one that was woken takes the processor, and the GIL, from the loop.

    `closed(count)` is called on the loop when so many more are closed; for several turns together
    where the loop is busy. For the event loop alone."""

    def __init__(self, key: Hashable, closed: Callable[[int], None] = lambda _: None) -> None:
        self.key, self._closed = key, closed
        self._waiting: deque[int] = deque()
        self._done: deque[None] = deque()  # one for each that is closed and was not told yet
        self._threads: list[Future[None]] = []  # that close now
        self._is_due = self._is_telling = False
        _piles.add(self)

    def add(self, fds: Iterable[int]) -> None:
        """Close descriptors in a thread. Takes ownership of them. Never blocks."""
        self._waiting.extend(fds)
        if self._waiting and not self._is_due:
            self._is_due = True
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._is_due = bool(self._waiting)
        if self._is_due:
            self.start()
            # Then for what has come since, and for what is behind one that is stuck in close(2).
            self._loop.call_later(_PAUSE, self._start)

    def start(self) -> None:
        """Pass those that wait to a thread now."""
        self._threads = [thread for thread in self._threads if not thread.done()]
        if self._waiting and len(self._threads) < _THREADS:
            self._threads.append(call_later(self.key, self._close_all))

    def _close_all(self) -> None:
        """Runs in a thread."""
        while True:
            try:
                fd = self._waiting.popleft()
            except IndexError:
                return
            with suppress(OSError):  # the descriptor is gone all the same
                os.close(fd)
            self._done.append(None)
            if not self._is_telling:
                self._is_telling = True
                with suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._is_telling = False  # before they are counted: who adds one later tells again
        count = len(self._done)
        for _ in range(count):
            self._done.popleft()
        if count:
            self._closed(count)


async def closed(key: Hashable, seconds: float) -> None:
    """Wait, up to `seconds`, until all that was passed to the threads of `key` before is closed."""
    for pile in tuple(_piles):
        if pile.key == key:
            pile.start()
    # All threads of the key meet at a barrier: each has then finished what it had begun before, and
    # while it waits at the barrier it cannot take the place of another.
    meeting = threading.Barrier(_THREADS, timeout=seconds)
    waits = [asyncio.wrap_future(call_later(key, _meet, meeting)) for _ in range(_THREADS)]
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*waits), seconds)


def _meet(meeting: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        meeting.wait()
