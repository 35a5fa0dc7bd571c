"""The attachments: which tags there are, of which files; made, found, and taken away again."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId, IoMode
from sealsvc.integrity import engine, keys, source
from sealsvc.integrity.attachment import Attachment, Tally, anchor_of
from sealsvc.integrity.check import Finding, Layout, values_at
from sealsvc.integrity.errors import ErrorLog
from sealsvc.integrity.profiles import Profile, ProfileError, parse
from sealsvc.integrity.shares import Shares
from sealsvc.integrity.store import STREAM_BLOCKS, About, BlockState, Bytes, TagStore, open_all
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.integrity import (
    Writes,
)
from sealsvc.runtime.closing import call_later
from sealsvc.runtime.config import IntegritySection
from sealsvc.runtime.events import EventLog

_BUILT = 8 << 20  # bytes of data that are tagged in one go when an attachment is made


class Attachments:
    """`directory` is where attachments are kept. Everything that touches a file or a store happens
    in the threads of grants.workers."""

    def __init__(
        self, grants: Grants, events: EventLog, section: IntegritySection, directory: Path
    ) -> None:
        self._grants, self._events = grants, events
        self._section, self._directory = section, directory
        self._by_id: dict[str, Attachment] = {}
        self.shares = Shares(
            grants.policy, lambda: (made.store.about.asker for made in self._by_id.values())
        )
        self.errors = ErrorLog(directory)

    async def load(self) -> None:
        """Open the stores of an earlier run. What cannot be used raises an alarm. Raises
        OSError."""
        stores, troubles = await self.pool().run(open_all, self._directory)
        self.errors.resume(await self.pool().run(self.errors.load))
        for trouble in troubles:
            self._events.publish("alarm", reason=f"tags cannot be used: {trouble}")
        for store in stores:
            try:
                attachment = await self.pool().run(self._revive, store)
            except (ProfileError, Refusal) as error:
                self._events.publish("alarm", reason=f"attachment {store.about.id}: {error}")
                continue
            self._by_id[attachment.id] = attachment
            if not attachment.seals():
                await self.cut_off(attachment, "start", None)

    def pool(self) -> Any:
        """The thread that reads and writes the directory."""
        return self._grants.workers.of(("integrity", "stores"), 1)

    def _revive(self, store: TagStore) -> Attachment:
        profile = parse(store.about.profile, str(store.directory))
        make, prove = keys.read(self._section.keys, store.about.secret, profile)
        return Attachment(Layout(profile, store, make, prove), self._grants, self.errors)

    def sorted(self) -> list[Attachment]:
        """All, by id."""
        return [attachment for _, attachment in sorted(self._by_id.items())]

    def get(self, id: str) -> Attachment | None:
        return self._by_id.get(id)

    def of_seal(self, seal: Seal) -> list[Attachment]:
        """Those of the seal's file that touch its effective range."""
        return [
            attachment
            for attachment in self._by_id.values()
            if attachment.store.about.file == seal.file
            and attachment.store.about.range.overlaps(seal.effective)
        ]

    # For copies (travel.py)

    def of_file(self, file: FileId, span: ByteRange | None) -> list[Attachment]:
        """Those of a file (its generation may be 0: not known) that touch the span."""
        return [
            attachment
            for attachment in self._by_id.values()
            if (about := attachment.store.about).file.same_inode(file)
            and file.generation in (0, about.file.generation)
            and (span is None or about.range.overlaps(span))
        ]

    def leave_out(self, attachment: Attachment) -> None:
        """Use the attachment no more in this run; its store stays."""
        self._by_id.pop(attachment.id, None)

    # Making one

    async def make(self, seal: Seal, profile: Profile, about: About) -> Attachment:
        """Tag the whole range as it is now. Raises Refusal: `io-error` when it cannot be read,
        `limit-reached` when who asks has too many."""
        with self.shares.one_more(about.asker):
            return await self._make(seal, profile, about)

    async def _make(self, seal: Seal, profile: Profile, about: About) -> Attachment:
        keyed = functools.partial(keys.read, self._section.keys, about.secret, profile)
        make, prove = await self.pool().run(keyed)
        store = await self._build(seal, profile, about, make)
        attachment = Attachment(Layout(profile, store, make, prove), self._grants, self.errors)
        self._by_id[attachment.id] = attachment
        return attachment

    async def _build(self, seal: Seal, profile: Profile, about: About, key: bytes) -> TagStore:
        """Tags of the whole range, aside, while no grant of the file begins."""
        anchor, leased = anchor_of(seal), "lease" in seal.enforcers
        parent = self._directory

        def work() -> TagStore:
            try:
                with source.opened(anchor, leased=leased) as opened:
                    about.changed = opened.changed
                    return TagStore.build(parent, about, _parts(opened, profile, about, key))
            finally:
                os.close(anchor)

        async with self._grants.lock(seal.file):
            try:
                return await self._waited_for(about, work)
            except OSError as error:
                raise Refusal("io-error", f"tags of {seal.path}: {error}") from error

    async def _waited_for(self, about: About, build: Callable[[], TagStore]) -> TagStore:
        """What `build` makes, in the thread of the attachment to be. When nobody waits for it any
        more it is removed."""
        pool = self._grants.workers.of(("integrity", about.id), 1, is_background=True)
        building = asyncio.ensure_future(pool.run(build))
        try:
            return await asyncio.shield(building)
        except asyncio.CancelledError:
            building.add_done_callback(_removed)
            raise

    async def adopt(self, about: About, parts: Iterator[tuple[Bytes, Bytes]]) -> Attachment:
        """A new attachment of a file that need not be sealed, with these tags and states. Raises
        Refusal when its path does not lead to it, or another has tags there."""
        profile = parse(about.profile, about.path)
        make, prove = await self.pool().run(keys.read, self._section.keys, about.secret, profile)
        async with self._grants.lock(about.file):
            if self.of_file(about.file, about.range):
                raise Refusal("already-attached", f"{about.path} has tags there by now")
            seals = [seal for seal in self._grants.machine.table.of_file(about.file) if seal.live]
            anchor = anchor_of(seals[0]) if seals else -1
            store = await self._waited_for(
                about, functools.partial(self._built, about, parts, anchor)
            )
        attachment = Attachment(Layout(profile, store, make, prove), self._grants, self.errors)
        self._by_id[attachment.id] = attachment
        return attachment

    def _built(self, about: About, parts: Iterator[tuple[Bytes, Bytes]], anchor: int) -> TagStore:
        fd = anchor
        try:
            if fd < 0:
                policy = self._grants.policy
                target = self._grants.host.open_path(about.path, policy.roots, writable=False)
                fd = target.fd
                if not target.file.same_inode(about.file):
                    raise Refusal("no-such-file", f"{about.path} is another file by now")
                about.file = target.file
            about.changed = os.fstat(fd).st_ctime_ns
            return TagStore.build(self._directory, about, parts)
        finally:
            if fd >= 0:
                os.close(fd)

    # States

    async def open_for_writers(self, attachment: Attachment) -> None:
        """Blocks that the holder of a live seal may write without telling are open."""
        for seal in attachment.seals():
            if may_write(seal, attachment.store.about):
                await attachment.move(BlockState.CLEAN, BlockState.OPEN, seal.effective)

    async def cut_off(self, attachment: Attachment, at: str, seal: Seal | None) -> None:
        """Open blocks that nobody writes any more become suspect, and are told."""
        count = await attachment.move(BlockState.OPEN, BlockState.SUSPECT)
        if not count:
            return
        whole = attachment.store.about.range
        finding = Finding(0, whole, BlockState.SUSPECT)
        error = attachment.error(finding, "suspect", at, seal)
        await attachment.tell([msgspec.structs.replace(error, more=count - 1)])

    def alarm(
        self, attachment: Attachment, tally: Tally, at: str, seal: Seal | None = None
    ) -> None:
        bad = {k: n for k, n in tally.blocks.items() if k in ("corrupt", "changed", "unreadable")}
        if not bad:
            return
        first = next((e for e in tally.errors if e.kind in bad), None)
        where = f", first at {first.offset} ({first.field or first.kind})" if first else ""
        counted = ", ".join(f"{n} {kind}" for kind, n in sorted(bad.items()))
        self._events.publish(
            "alarm",
            seal.id if seal else None,
            reason=f"{attachment.store.about.path}: {counted} blocks{where}, found at {at}",
            path=attachment.store.about.path,
        )


def may_write(seal: Seal, about: About) -> bool:
    """Whether the holder may write without telling before."""
    return seal.request.iomode is IoMode.RW and about.writes is Writes.ANY


def _removed(building: asyncio.Future[TagStore]) -> None:
    """Nobody waits for this store any more."""
    if not building.cancelled() and building.exception() is None:
        call_later("tags", building.result().remove)


def _parts(
    opened: source.Source, profile: Profile, about: About, key: bytes
) -> Iterator[tuple[Bytes, Bytes]]:
    """Tags and states of the range as it is; of a byte stream none yet."""
    if not profile.granularity:
        shape = (STREAM_BLOCKS, profile.width)
        yield np.zeros(shape, np.uint8), np.full(STREAM_BLOCKS, BlockState.FREE, np.uint8)
        return
    step = max(1, _BUILT // profile.granularity) * profile.granularity
    for offset in range(about.range.offset, about.range.end, step):
        length = min(step, about.range.end - offset)
        number = offset // profile.granularity
        values = values_at(profile, about, number, key)
        tags = engine.generate(profile, opened.read(offset, length), values)
        yield tags, np.zeros(len(tags), np.uint8)
