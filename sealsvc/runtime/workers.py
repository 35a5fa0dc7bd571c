"""Worker threads for calls that may block, such as every call that touches a file.

Each file system has its own pool, so that one which is frozen, or whose device hangs, delays only
itself. A thread that is stuck in the kernel cannot be stopped, but it must not keep the service
from ending. So these are daemon threads, which concurrent.futures does not have.
"""

from __future__ import annotations

import _thread
import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from sealsvc.runtime import priority

T = TypeVar("T")

_IDLE = 5.0  # seconds after which a thread without work ends

# Looks at the memory of processes. They need the process's mmap_lock, and wait for its owner.
_LOOKS = 2  # threads for each process
_PATIENCE = 3.0  # seconds after which a look counts as lost
LOST_BY_USER = 8  # processes of one user with lost looks, at which further looks are refused
LOST = 64  # the same for the processes of all users


class Pool:
    """At most `most` threads. They are started when there is work, and end after _IDLE seconds
    without any."""

    def __init__(self, most: int, is_background: bool = False) -> None:
        self._most, self._is_background = most, is_background
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = self._free = 0
        self._stopped = False

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call `function` in a thread of the pool, and wait for its result. Raises what it
        raises."""
        return await asyncio.wrap_future(self.submit(function, *arguments))

    def submit(self, function: Callable[..., T], *arguments: object) -> Future[T]:
        """As run(), without waiting. May be called from any thread."""
        future: Future[T] = Future()
        self.submit_as(future, partial(function, *arguments))
        return future

    def submit_as(self, future: Future[T], call: Callable[[], T]) -> None:
        """As submit(), with a Future that the caller has made. It is cancelled if the pool has been
        stopped."""
        with self._changed:
            if self._stopped:
                future.cancel()
                return
            self._jobs.append((future, call))
            if len(self._jobs) <= self._free:
                self._changed.notify()
            elif self._threads < self._most:
                self._start_thread()

    def stop(self) -> None:
        """Cancel all calls that have not begun. Those under way are not waited for."""
        with self._changed:
            self._stopped = True
            while self._jobs:
                self._jobs.popleft()[0].cancel()
            self._changed.notify_all()

    def start_missing(self) -> bool:
        """Start a thread if there is work and none. False when that still cannot be done."""
        with self._changed:
            if self._jobs and not self._threads:
                self._start_thread()
            return bool(self._threads) or not self._jobs

    def _start_thread(self) -> None:
        """With the lock held. If the system has no thread left (pids.max, RLIMIT_NPROC, memory),
        the work waits for the threads there are, or for start_missing()."""
        try:
            # Thread.start() would wait until the thread runs, and the event loop with it.
            _thread.start_new_thread(self._work, ())
        except RuntimeError:
            if not self._threads:
                _without_thread.add(self)
        else:
            self._threads += 1

    def _work(self) -> None:
        if self._is_background:
            priority.be_usual()
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


_without_thread: set[Pool] = set()  # that have work, but no thread could be started


def start_missing() -> int:
    """Start threads that could not be started earlier. Returns how many pools still have none.
    Called periodically, from a thread that needs no pool."""
    for pool in tuple(_without_thread):
        if pool.start_missing():
            _without_thread.discard(pool)
    return len(_without_thread)


class Workers:
    """The pools. A pool exists as long as it has threads, or somebody refers to it."""

    def __init__(self, count: int) -> None:
        """`count` is the maximum number of threads in each pool."""
        self.count = count
        self._pools: WeakValueDictionary[Hashable, Pool] = WeakValueDictionary()
        self._stopped = False

    def of(self, what: Hashable, most: int | None = None, is_background: bool = False) -> Pool:
        """The pool of a file system (its device), or of anything else that may hang independently.
        `most` is its maximum number of threads, if not `count`. `is_background`: it works on data,
        for as long as that takes, and is not preferred to other programs (priority.py). Both count
        when the pool is made."""
        pool = self._pools.get(what)
        if pool is None:
            pool = self._pools[what] = Pool(most or self.count, is_background)
            if self._stopped:
                pool.stop()
        return pool

    async def run(self, function: Callable[..., T], *arguments: object) -> T:
        """Call `function` in the pool for work that belongs to no particular file system."""
        return await self.of(None).run(function, *arguments)

    def stop(self) -> None:
        """Stop all pools, and those that are made later."""
        self._stopped = True
        for pool in list(self._pools.values()):
            pool.stop()


class Lost(Exception):
    """A look at a process has not returned in time, or is refused because earlier ones have not;
    the text says which."""


class Looks:
    """Runs looks at processes, which these may block for ever: with separate threads for each
    process, a time limit of `patience` seconds, and a limit on the looks that are lost. A lost look
    ends when the kernel lets its thread continue."""

    def __init__(self, workers: Workers, patience: float = _PATIENCE) -> None:
        self._workers, self._patience = workers, patience
        self._lost: dict[tuple[int, int], int] = {}  # lost looks by user and pid

    async def run(self, user: int, pid: int, call: Future[T], function: Callable[[], T]) -> T:
        """Call `function` in a thread, and return its result. `call` is done when the function has
        returned or will never be called, which may be long after this has raised Lost. Raises Lost,
        and what `function` raises."""
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
        if len(self._lost) >= LOST or sum(u == user for u, _ in self._lost) >= LOST_BY_USER:
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
