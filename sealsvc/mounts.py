"""Watching mounts: an overlay over a sealed file can truncate it past every enforcer, and a file
system that is unmounted lazily goes on being sealed where no path leads any more."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

from sealsvc import filesystem
from sealsvc.events import EventLog
from sealsvc.seals import Seal, SealTable


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


class Detached:
    """Tells, once, of each file system with seals that is mounted nowhere any more."""

    def __init__(self, table: SealTable, events: EventLog) -> None:
        self._table, self._events = table, events
        self._told: set[int] = set()

    def look(self) -> None:
        mounted = {mount.device for mount in filesystem.mounts()}
        left: dict[int, list[Seal]] = {}
        for seal in self._table:
            if seal.file.device not in mounted:
                left.setdefault(seal.file.device, []).append(seal)
        for device in left.keys() - self._told:
            self._tell(left[device])
        self._told = set(left)

    def _tell(self, seals: list[Seal]) -> None:
        where = seals[0].filesystem
        self._events.publish(
            "alarm",
            reason=f"the {where.type} of {where.mount} ({where.source}) was unmounted, but not its"
            f" {len(seals)} seals: they stay enforced, and the device busy, until they end"
            " (`sealctl recall SEAL`)",
            seals=[seal.id for seal in seals[:100]],
        )
