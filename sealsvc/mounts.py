"""Watching mounts: an overlay over a sealed file can truncate it past every enforcer."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable


class MountWatch:
    """Calls `changed` whenever a mount of this mount namespace comes or goes. The kernel tells it
    by an exceptional condition on mountinfo (proc_pid_mountinfo(5)), which selectors do not know:
    hence the epoll descriptor between."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._table, select.EPOLLPRI | select.EPOLLERR)

    def start(self) -> None:
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)

    def _ready(self) -> None:
        self._epoll.poll(0)
        self._changed()

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()
        os.close(self._table)
