"""Closing descriptors where nobody waits for it.

close(2) calls the file's ->flush, and dropping the last reference its ->release and perhaps the
inode's eviction (fs/open.c filp_close, fs/file_table.c __fput). On FUSE and NFS these wait for a
server, on a frozen file system for the thaw, on ext4 for the truncation of a deleted file. So the
event loop closes no descriptor that another program opened, sent or can reach: it hands it to a
daemon thread. Threads are apart for each key (a user, a device): whoever blocks them waits alone.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from sealsvc.runtime.workers import Workers

_THREADS = 2  # for each key

_pools = Workers(_THREADS)


def close_later(key: Hashable, fds: Iterable[int]) -> None:
    """Close descriptors in a thread of `key`. Never blocks."""
    for fd in fds:
        call_later(key, os.close, fd)


def call_later(key: Hashable, function: Callable[..., Any], *arguments: object) -> Future[Any]:
    """The same for any other call that closes something (a socket's queue may hold descriptors)."""
    return _pools.of(("closing", key)).submit(function, *arguments)


async def closed(key: Hashable, seconds: float) -> None:
    """Wait until what was handed over for `key` is closed, but for `seconds` at most."""
    # Each thread has done what it began before it comes here, and none comes twice.
    meeting = threading.Barrier(_THREADS, timeout=seconds)
    waits = [asyncio.wrap_future(call_later(key, _meet, meeting)) for _ in range(_THREADS)]
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*waits), seconds)


def _meet(meeting: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        meeting.wait()
