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
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

_IDLE = 5.0  # seconds after which a thread without work ends

# Looks at the memory of processes. Whoever holds a process's mmap_lock decides how long one takes.
_LOOKS = 2  # threads for each process
_PATIENCE = 3.0  # seconds until a look counts as lost
_LOST_BY_USER = 8  # processes of one user with lost looks
_LOST = 64  # of all users


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
        self.submit_as(future, partial(function, *arguments))
        return future

    def submit_as(self, future: Future[T], call: Callable[[], T]) -> None:
        with self._changed:
            if self._stopped:
                future.cancel()
                return
            self._jobs.append((future, call))
            if len(self._jobs) <= self._free:
                self._changed.notify()
            elif self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()

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


class Lost(Exception):
    """A look at a process does not come back; the text says what is known of it."""


class Looks:
    """Looks at processes that may keep them for ever: threads of its own for each process, a time
    limit, and a limit on the threads that are lost. A lost one ends when the kernel lets it go."""

    def __init__(self, workers: Workers, patience: float = _PATIENCE) -> None:
        self._workers, self._patience = workers, patience
        self._lost: dict[tuple[int, int], int] = {}  # how many, by user and pid

    async def run(self, user: int, pid: int, call: Future[T], function: Callable[[], T]) -> T:
        """What `function` returns, in a thread. `call` is done when it has ended or will never
        begin, which may be long after this has raised Lost."""
        if reason := self._refusal(user, pid):
            call.cancel()
            raise Lost(reason)
        pool = self._workers.of(("look", user, pid), _LOOKS)
        pool.submit_as(call, function)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(call), self._patience)
        except TimeoutError:
            self._give_up(user, pid, call)
            raise Lost(
                f"process {pid} was not done being looked at in {self._patience:g} s"
            ) from None

    def _refusal(self, user: int, pid: int) -> str:
        if (user, pid) in self._lost:
            return f"an earlier look at process {pid} has not come back"
        if len(self._lost) >= _LOST or sum(u == user for u, _ in self._lost) >= _LOST_BY_USER:
            return f"too many looks at processes (of user {user}, or of all) have not come back"
        return ""

    def _give_up(self, user: int, pid: int, call: Future[Any]) -> None:
        if call.done():
            return  # it was cancelled before it began
        key, loop = (user, pid), asyncio.get_running_loop()
        self._lost[key] = self._lost.get(key, 0) + 1

        def over() -> None:
            self._lost[key] -= 1
            if not self._lost[key]:
                del self._lost[key]

        def ended(_: Future[Any]) -> None:
            with suppress(RuntimeError):  # the service has ended
                loop.call_soon_threadsafe(over)

        call.add_done_callback(ended)
