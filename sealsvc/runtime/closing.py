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
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from sealsvc.runtime.workers import Workers

_THREADS = 2  # for each key

_pools = Workers(_THREADS)


def close_later(key: Hashable, fds: Iterable[int]) -> None:
    """Close descriptors in a thread of `key`. Takes ownership of them. Never blocks."""
    for fd in fds:
        call_later(key, os.close, fd)


def call_later(key: Hashable, function: Callable[..., Any], *arguments: object) -> Future[Any]:
    """Call `function` in a thread of `key`; for other calls that close something, such as a socket
    whose queue may hold descriptors. Never blocks. The Future is done when the call has ended."""
    return _pools.of(("closing", key)).submit(function, *arguments)


async def closed(key: Hashable, seconds: float) -> None:
    """Wait, up to `seconds`, until all that was passed to the threads of `key` before is closed."""
    # All threads of the key meet at a barrier: each has then finished what it had begun before, and
    # while it waits at the barrier it cannot take the place of another.
    meeting = threading.Barrier(_THREADS, timeout=seconds)
    waits = [asyncio.wrap_future(call_later(key, _meet, meeting)) for _ in range(_THREADS)]
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.gather(*waits), seconds)


def _meet(meeting: threading.Barrier) -> None:
    with suppress(threading.BrokenBarrierError):
        meeting.wait()
