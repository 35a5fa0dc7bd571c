"""Watches mounts for what affects seals: an overlay that is mounted over a sealed file, and a file
system that is lazily unmounted while it has seals, which then no path reaches.

MountNamespaces reports changes from its own thread. Worker threads compare them with the seals, in
batches, and the event loop gets the results.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sealsvc.core.model import FileId, Kind
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.linux.namespaces import MountNamespaces
from sealsvc.linux.overlays import Overlay, Reaching, refusal
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.workers import Workers

_COLLECT = 0.05  # seconds for which new overlays are collected into a batch
# Seconds until a batch is compared again: grants that were under way are in the table by then.
_AGAIN = 2.0
_PART = 100  # files that are compared in one call of a thread


@dataclass(frozen=True, slots=True)
class _Sealed:
    file: FileId
    anchor: int
    path: str
    exclusive: bool


class MountWatch:
    """`overlaid(seal, reason)` is called, on the event loop, for each seal that an overlay
    reaches."""

    def __init__(
        self,
        namespaces: MountNamespaces,
        table: SealTable,
        events: EventLog,
        workers: Workers,
        tasks: Tasks,
        overlaid: Callable[[Seal, str], None],
    ) -> None:
        self._namespaces, self._table, self._events = namespaces, table, events
        self._workers, self._tasks, self._overlaid = workers, tasks, overlaid
        self._detached = Detached(table, events)
        self._found: list[Overlay] = []
        self._told: set[str] = set()

    async def start(self) -> None:
        """Start watching, and check the present mounts."""
        loop = asyncio.get_running_loop()
        self._loop = loop
        await self._workers.of("mounts").run(self._namespaces.start, self)
        self._changed(self._namespaces.devices(), self._namespaces.warnings())

    def stop(self) -> None:
        """Stop watching. May block."""
        self._namespaces.stop()

    def mounts_changed(self) -> None:
        """See MountListener."""
        self._soon(self._changed, self._namespaces.devices(), self._namespaces.warnings())

    def overlay_found(self, overlay: Overlay) -> None:
        """See MountListener."""
        self._soon(self._collect, overlay)

    def _soon(self, call: Callable[..., None], *arguments: object) -> None:
        """Call on the event loop, from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call, *arguments)

    def _changed(self, devices: set[int], warnings: list[str]) -> None:
        self._detached.look(devices)
        for warning in warnings:
            if warning not in self._told:
                self._events.publish("alarm", reason=warning)
        self._told = set(warnings)

    def _collect(self, overlay: Overlay) -> None:
        if not self._found:
            self._loop.call_later(_COLLECT, self._look_at_found)
        self._found.append(overlay)

    def _look_at_found(self) -> None:
        found, self._found = self._found, []
        self._tasks.spawn("overlays over seals", self._look(found))

    async def _look(self, found: list[Overlay]) -> None:
        await self._compare(found)
        await asyncio.sleep(_AGAIN)
        await self._compare(found)

    async def _compare(self, found: list[Overlay]) -> None:
        by_device: dict[int, list[int]] = {}
        for device, inode in self._table.files():
            by_device.setdefault(device, []).append(inode)
        await asyncio.gather(
            *(self._compare_on(device, inodes, found) for device, inodes in by_device.items())
        )

    async def _compare_on(self, device: int, inodes: list[int], found: list[Overlay]) -> None:
        """Compare the seals on one device with new overlays. Each device has its own pool, because
        on a dead file system the call does not return. A part of the files at a time, so that the
        event loop is not held up by very many."""
        pool = self._workers.of(("mounts", device), 1)
        for first in range(0, len(inodes), _PART):
            sealed = [
                self._sealed(seals)
                for inode in inodes[first : first + _PART]
                if (seals := self._table.of_inode(device, inode))
            ]
            for file, reason in await pool.run(self._reached, sealed, found):
                for seal in self._table.of_file(file):
                    self._overlaid(seal, reason)

    def _sealed(self, seals: list[Seal]) -> _Sealed:
        first = seals[0]
        exclusive = any(seal.request.kind is Kind.EXCLUSIVE for seal in seals)
        return _Sealed(first.file, first.hold.anchor, first.path, exclusive)

    def _reached(self, sealed: list[_Sealed], found: list[Overlay]) -> list[tuple[FileId, str]]:
        """In a thread: what of `sealed`, all on one device, an overlay of `found` reaches."""
        reached = []
        near: Reaching | None = None
        for each in sealed:
            try:
                fd = os.dup(each.anchor)
            except OSError:
                continue  # the seal has ended meanwhile
            try:
                st = os.fstat(fd)
                if (st.st_dev, st.st_ino) != (each.file.device, each.file.inode):
                    continue
                if near is None:
                    near = self._namespaces.overlays.reaching(fd, found)
                if not near:
                    break
                if overlay := self._namespaces.over(fd, near, strict=each.exclusive):
                    reached.append((each.file, refusal(overlay, each.path).message))
            except OSError:
                continue  # its file system was shut down, where nothing can be truncated either
            finally:
                os.close(fd)
        return reached


class Detached:
    """Raises an alarm, once, for each file system with seals that is no longer mounted anywhere."""

    def __init__(self, table: SealTable, events: EventLog) -> None:
        self._table, self._events = table, events
        self._told: set[int] = set()

    def look(self, mounted: set[int]) -> None:
        """Compare with the devices (dev_t) of all mounted file systems."""
        left = self._table.counts.by_filesystem.keys() - mounted
        for device in left - self._told:
            self._tell([seal for seal in self._table if seal.file.device == device])
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
