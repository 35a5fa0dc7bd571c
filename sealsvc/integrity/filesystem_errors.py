"""Errors that the file system itself reports: FAN_FS_ERROR of fanotify(7).

The kernel tells of damaged metadata while it runs into it: ext4 since Linux 5.16
(fs/ext4/super.c fsnotify_sb_error), XFS since 7.0. Every file system with a seal or with tags is
watched. An event has the errno, the inode where there is one, and how many errors it stands for
since the last was read; it becomes a record of the queue of errors, and an alarm.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from sealsvc.core.errors import Refusal
from sealsvc.core.model import FileId
from sealsvc.integrity.attachment import Attachment
from sealsvc.integrity.attachments import Attachments
from sealsvc.integrity.source import Source
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux import libc
from sealsvc.protocol.integrity import PiError
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks

_INIT, _MARK = 300, 301  # x86-64
_CLOEXEC, _NONBLOCK, _REPORT_FID = 0x1, 0x2, 0x200
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_FS_ERROR = 0x8000
_AT_FDCWD = -100
# include/uapi/linux/fanotify.h: fanotify_event_metadata, then records that begin with a header.
_METADATA, _HEADER = struct.Struct("<IBBHQii"), struct.Struct("<BBH")
_FID, _ERROR = 1, 5  # FAN_EVENT_INFO_TYPE_*
_HANDLE = struct.Struct("<8sIi")  # __kernel_fsid_t; handle_bytes and handle_type of a file_handle
_COUNTED = struct.Struct("<iI")  # error, error_count
_INO32_GEN = 1  # FILEID_INO32_GEN of include/linux/exportfs.h; XFS: FILEID_INO64_GEN, 0x81
_INO64_GEN = 0x81
_PAUSE = 1.0  # seconds until the next are read: the kernel merges those that come meanwhile


@dataclass(frozen=True, slots=True)
class FsError:
    """`fsid` is that of statfs(2). `inode` and `generation` are 0 for an error of the file system
    as a whole; the generation also where the inode itself could not be read."""

    fsid: bytes
    inode: int
    generation: int
    errno: int
    count: int


def parse(data: bytes) -> Iterator[FsError]:
    """The errors among what was read from a fanotify group. Records that are not known are passed
    over."""
    while len(data) >= _METADATA.size:
        length, _, _, start, mask, _, _ = _METADATA.unpack_from(data)
        if not _METADATA.size <= length <= len(data):
            return
        if mask & _FS_ERROR:
            yield _parsed(data[start:length])
        data = data[length:]


def _parsed(records: bytes) -> FsError:
    fsid, inode, generation, error, count = bytes(8), 0, 0, 0, 1
    while len(records) >= _HEADER.size:
        kind, _, length = _HEADER.unpack_from(records)
        body, records = records[_HEADER.size : length], records[max(length, _HEADER.size) :]
        if kind == _ERROR and len(body) >= _COUNTED.size:
            error, count = _COUNTED.unpack_from(body)
        elif kind == _FID and len(body) >= _HANDLE.size:
            fsid, size, handle = _HANDLE.unpack_from(body)
            shape = {_INO32_GEN: "<II", _INO64_GEN: "<QI"}.get(handle)
            if shape and size >= struct.calcsize(shape):
                inode, generation = struct.unpack_from(shape, body, _HANDLE.size)
    return FsError(fsid, inode, generation, abs(error), count)


class FilesystemErrors:
    def __init__(
        self, grants: Grants, events: EventLog, tasks: Tasks, attachments: Attachments
    ) -> None:
        self._grants, self._events, self._tasks = grants, events, tasks
        self._attachments = attachments
        self._group = -1
        self._devices: dict[bytes, int] = {}  # by fsid
        self._recording = asyncio.Lock()
        self._failed: set[int] = set()  # devices of which it was told that they are not watched

    def start(self) -> None:
        """Watch the file systems of all seals and attachments, soon: none that hangs keeps others
        from their tags. A kernel that has no such events is an alarm, and no error."""
        flags = _CLOEXEC | _NONBLOCK | _REPORT_FID
        try:
            self._group = libc.syscall("fanotify_init", _INIT, flags, os.O_RDONLY)
        except OSError as error:
            self._events.publish("alarm", reason=f"errors of file systems are not told: {error}")
            return
        asyncio.get_running_loop().add_reader(self._group, self._readable)
        self._tasks.spawn("errors of file systems", self._watch_all())

    async def _watch_all(self) -> None:
        for seal in list(self._grants.life.table):
            await self._watch(seal)
        for attachment in self._attachments.sorted():
            await self._watch_attachment(attachment)

    async def _watch_attachment(self, attachment: Attachment) -> None:
        device = attachment.store.about.file.device

        def work(opened: Source) -> None:
            self._mark(opened.fd, device)

        if device not in self._devices.values():
            with suppress(Refusal, OSError):  # what is not there has no errors
                await attachment.with_source(work)

    def stop(self) -> None:
        if self._group >= 0:
            asyncio.get_running_loop().remove_reader(self._group)
            os.close(self._group)
            self._group = -1

    def watch_soon(self, seal: Seal) -> None:
        """Of each seal: a file system that was mounted again has lost its mark."""
        if self._group >= 0 and seal.hold.anchor >= 0:
            self._tasks.spawn("errors of a file system", self._watch(seal))

    async def _watch(self, seal: Seal) -> None:
        if not seal.live or seal.hold.anchor < 0:
            return
        anchor = os.dup(seal.hold.anchor)

        def work() -> None:
            try:
                self._mark(anchor, seal.file.device)
            finally:
                os.close(anchor)

        try:
            await self._grants.workers.of(seal.file.device).run(work)
        except OSError as error:
            if seal.file.device in self._failed:
                return
            self._failed.add(seal.file.device)
            reason = f"errors of the file system of {seal.path} are not told: {error}"
            self._events.publish("alarm", seal.id, reason=reason)

    def _mark(self, fd: int, device: int) -> None:
        """Raises OSError: EINVAL or EOPNOTSUPP of a kernel, or a file system, without."""
        path = f"/proc/self/fd/{fd}".encode()
        flags = _MARK_ADD | _MARK_FILESYSTEM
        libc.syscall("fanotify_mark", _MARK, self._group, flags, _FS_ERROR, _AT_FDCWD, path)
        self._devices[_fsid(fd)] = device

    def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        with suppress(BlockingIOError):
            if found := list(parse(os.read(self._group, 1 << 14))):
                self._tasks.spawn("errors of file systems", self._record(found))
        loop.remove_reader(self._group)
        loop.call_later(_PAUSE, self._read_on)

    def _read_on(self) -> None:
        if self._group >= 0:
            asyncio.get_running_loop().add_reader(self._group, self._readable)

    async def _record(self, found: list[FsError]) -> None:
        """On disk before anybody is told."""
        async with self._recording:
            log = self._attachments.errors
            errors = log.numbered([error for one in found for error in self._described(one)])
            await self._grants.workers.of(("integrity", "errors"), 1).run(log.write, errors)
            log.tell(errors)
        for error in errors:
            self._events.publish("integrity", error.seal, error=error)
            self._events.publish("alarm", error.seal, reason=_sentence(error), path=error.path)

    def _described(self, found: FsError) -> Iterator[PiError]:
        """One record for each seal and attachment of the file; for what is of none of them, one."""
        file = FileId(self._devices.get(found.fsid, 0), found.inode, found.generation)
        seals = [s for s in self._grants.life.table if s.live and found.inode and _is(s.file, file)]
        attachments = self._attachments.of_file(file, None) if found.inode else []
        for seal in seals:
            yield _record(found, seal.file, seal.path, seal=seal)
        for attachment in attachments:
            about = attachment.store.about
            yield _record(found, about.file, about.path, attachment=about.id)
        if not seals and not attachments:
            yield _record(found, file, "")


def _is(known: FileId, told: FileId) -> bool:
    return known.same_inode(told) and told.generation in (0, known.generation)


def _fsid(fd: int) -> bytes:
    """As the events have it."""
    return struct.pack("<Q", os.fstatvfs(fd).f_fsid & (1 << 64) - 1)


def _record(
    found: FsError, file: FileId, path: str, seal: Seal | None = None, attachment: str = ""
) -> PiError:
    return PiError(
        seq=0,
        time=time.time(),
        kind="filesystem",
        at="kernel",
        attachment=attachment,
        path=path,
        file=file,
        profile="",
        block=0,
        offset=0,
        length=0,
        field="",
        expected="",
        found="",
        physical=None,
        seal=seal.id if seal else None,
        holder=seal.process.holder.pid if seal else None,
        cookie=seal.place.cookie if seal and seal.place else 0,
        first_good=None,
        last_good=None,
        errno=found.errno,
        more=max(0, found.count - 1),
    )


def _sentence(error: PiError) -> str:
    of = error.path or (f"inode {error.file.inode}" if error.file.inode else "its metadata")
    device = f"{os.major(error.file.device)}:{os.minor(error.file.device)}"
    return f"the file system on {device} reports an error of {of}: {os.strerror(error.errno)}"
