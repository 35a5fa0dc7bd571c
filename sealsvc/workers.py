"""Threads for what may block: every call that touches a file.

A pool for each file system, so that one which is frozen, or whose device hangs, starves only
itself. A thread that is stuck in the kernel cannot be stopped, but it must not keep the service
from ending: so these are daemon threads, which concurrent.futures does not have.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

_IDLE = 5.0  # seconds after which a thread without work ends


class Pool:
    """At most `most` threads, made when there is work."""

    def __init__(self, most: int, name: str) -> None:
        self._most, self._name = most, name
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = self._free = 0
        self._stopped = False

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        return await asyncio.wrap_future(self.submit(function, *arguments))

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """The same without waiting, from any thread."""
        future: Future[T] = Future()
        with self._changed:
            if self._stopped:
                future.cancel()
                return future
            self._jobs.append((future, partial(function, *arguments)))
            if len(self._jobs) <= self._free:
                self._changed.notify()
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def stop(self) -> None:
        """What is under way ends when it does; nothing else begins."""
        with self._changed:
            self._stopped = True
            while self._jobs:
                self._jobs.popleft()[0].cancel()
            self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, call

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """The next job, or None when the thread is to end."""
        with self._changed:
            self._free += 1
            self._changed.wait_for(lambda: self._jobs or self._stopped, _IDLE)
            self._free -= 1
            if self._jobs:
                return self._jobs.popleft()
            self._threads -= 1
            return None


class Workers:
    """The pools. One that is idle goes away by itself: its threads alone keep it."""

    def __init__(self, count: int) -> None:
        """`count` threads in each pool at most."""
        self.count = count
        self._pools: WeakValueDictionary[Hashable, Pool] = WeakValueDictionary()
        self._stopped = False

    def of(self, what: Hashable, most: int | None = None) -> Pool:
        """The pool of a file system (its device), or of anything else that may hang by itself."""
        pool = self._pools.get(what)
        if pool is None:
            pool = self._pools[what] = Pool(most or self.count, f"seal-worker-{what}")
            if self._stopped:
                pool.stop()
        return pool

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """For what belongs to no one file system."""
        return await self.of(None).run(function, *arguments)

    def stop(self) -> None:
        self._stopped = True
        for pool in list(self._pools.values()):
            pool.stop()
