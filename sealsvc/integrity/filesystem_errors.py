"""Errors that the file system itself reports: which are listened to, and what becomes of them.

Every file system with a seal or with tags is listened to, by the process of kernel/. What it hears
becomes a record of the queue of errors, and an alarm.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import suppress

import numpy as np

from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId
from sealsvc.integrity.attachments import Attachments
from sealsvc.integrity.kernel import wire
from sealsvc.integrity.kernel.link import Heard, Link
from sealsvc.integrity.kernel.wire import KernelError
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.integrity import PiError
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks

_EACH = 1.0  # seconds between two requests for the same device


class FilesystemErrors:
    """`monitor` allows XFS's health monitor, of which a file system has one."""

    def __init__(
        self,
        grants: Grants,
        events: EventLog,
        tasks: Tasks,
        attachments: Attachments,
        *,
        monitor: bool,
    ) -> None:
        self._grants, self._events, self._tasks = grants, events, tasks
        self._attachments, self._monitor = attachments, monitor
        self._link = Link(Heard(self._ask_all, self._gap, self._silent, self._heard))
        self._recording = asyncio.Lock()
        # The seal with which a device was last asked for: while it lives, its file system is the
        # one that is listened to. Any other may have been unmounted since.
        self._witness: dict[int, Seal | None] = {}
        self._asked_at: dict[int, float] = {}
        self._gaps: dict[int, float] = {}  # since when a device is not listened to
        self._failed: set[int] = set()  # devices of which it was told that they cannot be

    def start(self) -> None:
        self._link.start()

    async def listen(self) -> None:
        """Listen to the file systems of all seals and attachments, soon."""
        await self._link.started()
        for seal in self._grants.machine.table:
            self.watch_soon(seal)
        for attachment in self._attachments.sorted():
            device = attachment.store.about.file.device
            if device not in self._witness:
                self._witness[device] = None
                self._ask_soon(device)

    async def stop(self) -> None:
        await self._link.stop()

    def watch_soon(self, seal: Seal) -> None:
        """Of each seal that is granted: a file system that was mounted again is another."""
        if not seal.live or seal.hold.anchor < 0:
            return
        witness = self._witness.get(seal.file.device)
        if witness is None or not witness.live:
            self._witness[seal.file.device] = seal
            self._ask_soon(seal.file.device)

    def _ask_soon(self, device: int) -> None:
        loop = asyncio.get_running_loop()
        due = self._asked_at.get(device, 0.0) + _EACH - time.monotonic()
        if due <= 0:
            self._asked_at[device] = time.monotonic()
            self._ask(device)
        elif due < _EACH:
            self._asked_at[device] += _EACH  # one that is under way is enough
            loop.call_later(due, self._ask, device)

    def _ask(self, device: int) -> None:
        """With whatever is sealed there, or has tags, now."""
        if not self._link.waits:
            return  # _ask_all() follows
        for seal in self._grants.machine.table:
            if seal.live and seal.file.device == device and seal.hold.anchor >= 0:
                self._witness[device] = seal
                self._watch(device, _place_of(seal.hold.anchor))
                return
        self._tasks.spawn("errors of a file system", self._ask_by_attachment(device))

    async def _ask_by_attachment(self, device: int) -> None:
        for attachment in self._attachments.sorted():
            if attachment.store.about.file.device == device:
                with suppress(Refusal, OSError):  # what is not there has no errors
                    self._watch(
                        device, await attachment.with_source(lambda opened: _place_of(opened.fd))
                    )
                    return

    def _watch(self, device: int, fd: int) -> None:
        try:
            self._link.watch(device, fd, monitor=self._monitor)
        finally:
            os.close(fd)

    def _ask_all(self) -> None:
        for device in self._witness:
            self._ask(device)

    # What the process says

    def _heard(self, message: wire.FromProcess) -> None:
        match message:
            case wire.Told():
                self._record_soon(message.device, message.errors)
                if message.lost:
                    self._unknown(message.device, message.lost, "the kernel did not keep")
            case wire.Watched():
                self._failed.discard(message.device)
                if message.device in self._gaps:
                    seconds = time.time() - self._gaps.pop(message.device)
                    self._unknown(message.device, 0, f"nobody heard for {seconds:.1f} s")
            case wire.Failed():
                self._cannot(message.device, message.reason)

    def _gap(self, devices: set[int], reason: str) -> None:
        for device in devices:
            self._gaps.setdefault(device, time.time())
        what = f"what hears errors of file systems {reason}"
        self._events.publish("alarm", reason=f"{what}: those that come now are not known")

    def _silent(self, device: int) -> None:
        self._cannot(device, "it does not answer")

    def _cannot(self, device: int, reason: str) -> None:
        if device not in self._failed:
            self._failed.add(device)
            where = f"the file system on {_name(device)}"
            self._events.publish("alarm", reason=f"errors of {where} are not told: {reason}")

    def _unknown(self, device: int, count: int, why: str) -> None:
        lost = f"{count} errors that {why}" if count else f"errors that {why}"
        self._record_soon(device, [KernelError(0, count=max(1, count), detail=lost)], "unknown")

    # Records

    def _record_soon(
        self, device: int, errors: list[KernelError], kind: str = "filesystem"
    ) -> None:
        made = [error for one in errors for error in self._described(device, one, kind)]
        self._tasks.spawn("errors of file systems", self._record(made))

    async def _record(self, made: list[PiError]) -> None:
        """On disk before anybody is told."""
        async with self._recording:
            log = self._attachments.errors
            errors = log.numbered(made)
            await self._grants.workers.of(("integrity", "errors"), 1).run(log.write, errors)
            log.tell(errors)
        for error in errors:
            self._events.publish("integrity", error.seal, error=error)
            self._events.publish("alarm", error.seal, reason=_sentence(error), path=error.path)

    def _described(self, device: int, found: KernelError, kind: str) -> Iterator[PiError]:
        """One record for each seal and attachment of the file; for what is of none of them, one."""
        file = FileId(device, found.inode, found.generation)
        seals = [s for s in self._grants.machine.table if s.live and _concerns(s, file, found)]
        attachments = self._attachments.of_file(file, None) if found.inode else []
        for seal in seals:
            yield _record(kind, found, seal.file, seal.path, seal=seal)
        for attachment in attachments:
            about = attachment.store.about
            yield _record(kind, found, about.file, about.path, attachment=about.id)
        if not seals and not attachments:
            yield _record(kind, found, file, "")


def _place_of(fd: int) -> int:
    """A descriptor that stands for the file alone: with another the process would be one more that
    has the file open, to the proof that an exclusive seal needs."""
    return os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)


def _concerns(seal: Seal, file: FileId, found: KernelError) -> bool:
    if seal.file.device != file.device:
        return False
    if file.inode:
        return seal.file.same_inode(file) and file.generation in (0, seal.file.generation)
    return found.physical >= 0 and _lost(seal, found) is not None


def _lost(seal: Seal, found: KernelError) -> tuple[int, int, int] | None:
    """The first part of a sealed file that lies in a range of the device: offset, length, and its
    place on the device; bytes."""
    rows, begin, end = seal.map, found.physical, found.physical + found.length
    hit = np.flatnonzero((rows[:, 1] < end) & (rows[:, 1] + rows[:, 2] > begin))
    if not hit.size:
        return None
    logical, physical, length, _ = rows[hit[0]].tolist()
    start = max(physical, begin)
    return logical + start - physical, min(physical + length, end) - start, start


def _place(seal: Seal | None, found: KernelError) -> tuple[int, int, int | None]:
    if found.physical >= 0:
        lost = _lost(seal, found) if seal else None
        return lost or (0, found.length, found.physical)
    if seal is None or not found.length:
        return found.offset, found.length, None
    here = extents.clip(seal.map, ByteRange(found.offset, 1))
    return found.offset, found.length, int(here[0][1]) if len(here) else None


def _record(
    kind: str,
    found: KernelError,
    file: FileId,
    path: str,
    seal: Seal | None = None,
    attachment: str = "",
) -> PiError:
    offset, length, physical = _place(seal, found)
    return PiError(
        seq=0,
        time=time.time(),
        kind=kind,
        at="kernel",
        attachment=attachment,
        path=path,
        file=file,
        profile="",
        block=0,
        offset=offset,
        length=length,
        field="",
        expected="",
        found="",
        physical=physical,
        seal=seal.id if seal else None,
        holder=seal.process.holder.pid if seal else None,
        cookie=seal.place.cookie if seal and seal.place else 0,
        first_good=None,
        last_good=None,
        errno=found.errno,
        more=max(0, found.count - 1),
        detail=found.detail,
    )


def _sentence(error: PiError) -> str:
    device = _name(error.file.device)
    if error.kind == "unknown":
        return f"the file system on {device} may have reported {error.detail}"
    of = error.path or (f"inode {error.file.inode}" if error.file.inode else "its metadata")
    what = f"{os.strerror(error.errno)}{error.detail and f' ({error.detail})'}"
    return f"the file system on {device} reports an error of {of}: {what}"


def _name(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
