"""Integrity in the service: what is asked of it, and what it does when seals begin and end."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import secrets
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sealsvc.core import states
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId, IoMode, Kind, State
from sealsvc.core.paths import lies_below
from sealsvc.integrity import device, engine, keys, scrub, source
from sealsvc.integrity.attachment import Attachment, Tally, anchor_of, no_such_attachment
from sealsvc.integrity.check import Finding, Layout, values_at
from sealsvc.integrity.errors import ErrorLog, fitting
from sealsvc.integrity.opening import described
from sealsvc.integrity.profiles import Profile, ProfileError, load, parse
from sealsvc.integrity.store import STREAM_BLOCKS, About, BlockState, Bytes, TagStore, open_all
from sealsvc.integrity.verdict import Stance
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.paths import concealed, no_such_file
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux.processes import Peer
from sealsvc.protocol import integrity
from sealsvc.protocol.events import Event
from sealsvc.protocol.integrity import (
    AnyRequest,
    PiAbility,
    PiAttach,
    PiAttachment,
    PiAttachmentList,
    PiAttachments,
    PiBless,
    PiDetach,
    PiErrors,
    PiOpen,
    PiProfile,
    PiProfileList,
    PiProfiles,
    PiQuery,
    PiReport,
    PiScrub,
    PiTag,
    PiVerify,
    Result,
    Writes,
)
from sealsvc.runtime.closing import call_later
from sealsvc.runtime.config import IntegritySection
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.users import Received

log = logging.getLogger(__name__)

_BUILT = 8 << 20  # bytes of data that are tagged in one go when an attachment is made
MOST, MOST_BY_USER = 1000, 200  # attachments
_LISTED = 40


class Integrity:
    """`directory` is where attachments are kept. Everything that touches a file or a store happens
    in the threads of grants.workers."""

    def __init__(
        self,
        grants: Grants,
        events: EventLog,
        tasks: Tasks,
        section: IntegritySection,
        directory: Path,
    ) -> None:
        self._grants, self._events, self._tasks = grants, events, tasks
        self._section, self._directory = section, directory
        self._attachments: dict[str, Attachment] = {}
        self.errors = ErrorLog(directory)
        self._profiles: dict[str, Profile] = {}
        self._profile_errors: list[ProfileError] = []
        self._handlers: dict[type, Callable[[Peer, Any], Awaitable[Result]]] = {
            PiProfiles: self._list_profiles,
            PiAttach: self._attach,
            PiDetach: self._detach,
            PiAttachments: self._list,
            PiVerify: self._verify,
            PiScrub: self._scrub,
            PiOpen: self._open,
            PiTag: self._tag,
            PiBless: self._bless,
            PiErrors: self._errors,
        }

    async def start(self) -> None:
        """Go on with what an earlier run has left. Blocks that were open when it was killed stay so
        only where their seal was taken over: else a writer may have been cut off."""
        await self._load_profiles()
        stores, troubles = await self._pool().run(open_all, self._directory)
        self.errors.resume(await self._pool().run(self.errors.load))
        for trouble in troubles:
            self._events.publish("alarm", reason=f"tags cannot be used: {trouble}")
        for store in stores:
            try:
                attachment = await self._pool().run(self._revive, store)
            except (ProfileError, Refusal) as error:
                self._events.publish("alarm", reason=f"attachment {store.about.id}: {error}")
                continue
            self._attachments[attachment.id] = attachment
            if not attachment.seals():
                await self._cut_off(attachment, "start", None)
        self._events.watch(self._heard)

    async def _load_profiles(self) -> None:
        """Anew from the directory, which may have changed."""
        found = await self._pool().run(load, Path(self._section.profiles))
        self._profiles, self._profile_errors = found

    def _pool(self) -> Any:
        return self._grants.workers.of(("integrity", "stores"), 1)

    def _revive(self, store: TagStore) -> Attachment:
        profile = parse(store.about.profile, str(store.directory))
        make, prove = keys.read(self._section.keys, store.about.secret, profile)
        return Attachment(Layout(profile, store, make, prove), self._grants, self.errors)

    # Requests

    async def answer(self, peer: Peer, request: AnyRequest, fds: Received | None = None) -> Result:
        if isinstance(request, PiQuery):
            return await self._query(peer, request, fds)
        return await self._handlers[type(request)](peer, request)

    async def _list_profiles(self, peer: Peer, request: PiProfiles) -> PiProfileList:  # noqa: ARG002
        await self._load_profiles()
        variants = engine.variants()
        return PiProfileList(
            profiles=[
                PiProfile(
                    name=profile.name,
                    keys=profile.described(),
                    fields=[
                        (field.name, field.offset, field.width, field.order.name.lower())
                        for field in profile.fields
                    ],
                    bytes=profile.width,
                    variant=variants.get(profile.checksum, "none"),
                    source=profile.source,
                )
                for profile in self._profiles.values()
            ],
            errors=[str(error) for error in self._profile_errors],
        )

    async def _query(self, peer: Peer, request: PiQuery, fds: Received | None) -> PiAbility:
        given = [request.path is not None, request.seal is not None, bool(fds)]
        if sum(given) != 1:
            raise Refusal("bad-request", "name exactly one of path, seal, or a descriptor")
        policy = self._grants.policy
        if request.seal is not None:
            seal = self._seal(peer, request.seal)
            fd, path = anchor_of(seal), seal.path
        elif request.path is not None:
            if not policy.is_operator(peer):
                raise Refusal("denied", f"uid {peer.uid} may only ask about its own seals")
            path = request.path
            fd = await self._opened_to_ask(path, request.below)
        else:
            assert fds is not None
            fd, path = fds.pop(), "(a descriptor)"
        pool = self._grants.workers.of(("integrity", "query"), 4)
        return await pool.run(self._look, fd, path)

    async def _opened_to_ask(self, path: str, below: list[str] | None) -> int:
        run = self._grants.workers.of(("integrity", "query"), 4).run
        if below is None:
            return await run(_open_to_ask, path)
        if not lies_below(path, below):
            raise no_such_file(path)
        host, roots = self._grants.host, self._grants.policy.roots
        try:
            target = await run(functools.partial(host.open_path, path, roots, writable=False))
            return target.fd
        except Refusal as refusal:
            raise concealed(refusal, path, below) from None

    def _look(self, fd: int, path: str) -> PiAbility:
        try:
            found, notes = device.look(fd, self._profiles)
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            way = described(fd) if regular else None
        finally:
            os.close(fd)
        checkers = ["client"] + ["service"] * regular + ["device"] * (found is not None)
        return PiAbility(
            path=path,
            checkers=checkers,
            profiles=sorted(self._profiles),
            device=found,
            device_path=way,
            notes=notes,
        )

    async def _attach(self, peer: Peer, request: PiAttach) -> PiAttachment:
        seal = self._seal(peer, request.seal)
        await self._load_profiles()
        profile = self._profiles.get(request.profile)
        if profile is None:
            raise Refusal(
                "no-such-profile",
                f"there is no profile {request.profile!r}",
                {"profiles": sorted(self._profiles)},
            )
        self.refuse_more(seal.process.holder.uid)
        for other in self._of(seal):
            raise Refusal(
                "already-attached",
                f"{seal.path} has the attachment {other.id} in that range; detach it first",
                {"attachment": other.id},
            )
        writable = seal.request.iomode is IoMode.RW
        if request.writes is Writes.DECLARED and writable and not request.quiet:
            raise Refusal("bad-request", "with declared writes the holder must be quiet meanwhile")
        self._refuse_values(profile, request)
        about = _about(seal, profile, request)
        make, prove = await self._pool().run(keys.read, self._section.keys, request.secret, profile)
        store = await self._build(seal, profile, about, make)
        attachment = Attachment(Layout(profile, store, make, prove), self._grants, self.errors)
        self._attachments[attachment.id] = attachment
        if not seal.live:
            await self._cut_off(attachment, "attach", seal)
        elif self._may_write(seal, about):
            await attachment.move(BlockState.CLEAN, BlockState.OPEN)
        return await attachment.info()

    def refuse_more(self, uid: int) -> None:
        owned = sum(a.store.about.owner == uid for a in self._attachments.values())
        if len(self._attachments) >= MOST or owned >= MOST_BY_USER:
            message = f"there are {MOST} attachments, or {MOST_BY_USER} of uid {uid}"
            raise Refusal("limit-reached", message)

    def _refuse_values(self, profile: Profile, request: PiAttach) -> None:
        widths = {field.name: field.width for field in profile.fields}
        for name, value in (("tag", request.tag), ("storage", request.storage)):
            if value and value >= 1 << widths.get(name, 0):
                raise Refusal(
                    "bad-request", f"{name} {value} does not fit into {profile.name}'s field"
                )

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
        pool = self._grants.workers.of(("integrity", about.id), 1)
        building = asyncio.ensure_future(pool.run(build))
        try:
            return await asyncio.shield(building)
        except asyncio.CancelledError:
            building.add_done_callback(_removed)
            raise

    async def _detach(self, peer: Peer, request: PiDetach) -> PiAttachment:
        attachment = self._attachment(peer, request.attachment)
        await scrub.stop(attachment)
        told = await attachment.info()
        attachment.gone = True
        self._attachments.pop(attachment.id, None)
        await attachment.run(attachment.store.remove)
        return told

    async def _list(self, peer: Peer, request: PiAttachments) -> PiAttachmentList:
        seen = [
            attachment
            for _, attachment in sorted(self._attachments.items())
            if self._may_see(peer, attachment)
            and request.path in (None, attachment.store.about.path)
            and request.attachment in (None, attachment.id)
            and (request.after is None or attachment.id > request.after)
        ]
        page = fitting([await attachment.info() for attachment in seen[:_LISTED]])
        more = len(page) < len(seen)
        return PiAttachmentList(attachments=page, next=page[-1].id if more else None)

    async def _verify(self, peer: Peer, request: PiVerify) -> PiReport:
        attachment, seal = self._chosen(peer, request)
        tally = await attachment.verify("verify", request.range, quiet=request.quiet, seal=seal)
        self._alarm(attachment, tally, "verify", seal)
        return attachment.report(tally, request.range)

    async def _scrub(self, peer: Peer, request: PiScrub) -> PiAttachment:
        attachment, _ = self._chosen(peer, request)
        if request.stop or request.restart:
            await scrub.stop(attachment)
        if not request.stop and (attachment.scrub is None or attachment.scrub.done()):
            pace = scrub.Pace(request.rate or self._section.scrub_rate, request.cycle)
            first = await scrub.begin(attachment, restart=request.restart)
            attachment.scrub = self._tasks.spawn(
                f"scrub {attachment.id}",
                scrub.run(attachment, first, pace, self._alarm),
            )
        return await attachment.info()

    async def _open(self, peer: Peer, request: PiOpen) -> PiReport:
        attachment, _ = self._chosen(peer, request)
        tally = Tally()
        tally.blocks["open"] = await attachment.move(
            BlockState.CLEAN, BlockState.OPEN, request.range
        )
        return attachment.report(tally, request.range)

    async def _tag(self, peer: Peer, request: PiTag) -> PiReport:
        attachment, seal = self._chosen(peer, request)
        if attachment.layout.is_stream:
            if request.range is None:
                raise Refusal("bad-request", "a byte stream needs the range of its new PI")
            tally = await attachment.add(request.range)
        elif request.changed is not None:
            tally = await self._tag_changed(attachment, seal, request.range, request.changed)
        else:
            tally = await attachment.tag(BlockState.OPEN, request.range)
            if seal is not None and attachment.store.about.writes is Writes.ANY:
                await attachment.move(BlockState.CLEAN, BlockState.OPEN, request.range)
        return attachment.report(tally, request.range)

    @staticmethod
    async def _tag_changed(
        attachment: Attachment,
        seal: Seal | None,
        wanted: ByteRange | None,
        changed: list[ByteRange],
    ) -> Tally:
        """What was opened and not changed is as its tag says, if its holder alone can write."""
        alone = seal is not None and seal.request.kind is Kind.EXCLUSIVE
        if not alone or attachment.store.about.writes is not Writes.DECLARED:
            raise Refusal(
                "bad-request", "`changed` needs an exclusive seal whose holder declares its writes"
            )
        whole = wanted or attachment.store.about.range
        met = [part.clipped(whole) for part in changed]
        tally = await attachment.tag_changed([part for part in met if part is not None])
        tally.blocks["unchanged"] = await attachment.move(BlockState.OPEN, BlockState.CLEAN, whole)
        return tally

    async def _bless(self, peer: Peer, request: PiBless) -> PiReport:
        attachment, _ = self._chosen(peer, request)
        tally = await attachment.tag(BlockState.SUSPECT, request.range)
        if not attachment.seals():
            await attachment.remember_time(whole=False)
        return attachment.report(tally, request.range)

    async def _errors(self, peer: Peer, request: PiErrors) -> integrity.PiErrorPage:
        if not self._grants.policy.is_operator(peer):
            raise Refusal("denied", f"uid {peer.uid} is not an operator", {"uid": peer.uid})
        return await self.errors.page(request.after, min(request.limit, 20), request.wait)

    # Who may

    def _seal(self, peer: Peer, seal_id: str) -> Seal:
        seal = self._grants.life.table.get(seal_id)
        if seal is None or not self._grants.policy.may_see(peer, seal):
            raise Refusal("no-such-seal", f"there is no seal {seal_id}", {"seal": seal_id})
        return seal

    def _may_see(self, peer: Peer, attachment: Attachment) -> bool:
        return attachment.store.about.owner == peer.uid or self._grants.policy.is_operator(peer)

    def _attachment(self, peer: Peer, name: str) -> Attachment:
        found = self._attachments.get(name)
        if found is None or not self._may_see(peer, found):
            raise no_such_attachment(name)
        return found

    def _chosen(self, peer: Peer, request: Any) -> tuple[Attachment, Seal | None]:
        """The one that is named, or that of the seal's file; and the seal."""
        if (request.attachment is None) == (request.seal is None):
            raise Refusal("bad-request", "name exactly one of attachment and seal")
        if request.seal is None:
            attachment = self._attachment(peer, request.attachment)
            live = attachment.seals()
            return attachment, live[0] if live else None
        seal = self._seal(peer, request.seal)
        for attachment in self._of(seal):
            return attachment, seal
        raise Refusal("no-such-attachment", f"seal {seal.id} has no attachment")

    def _of(self, seal: Seal) -> list[Attachment]:
        return [
            attachment
            for attachment in self._attachments.values()
            if attachment.store.about.file == seal.file
            and attachment.store.about.range.overlaps(seal.effective)
        ]

    def _watching(self, seal: Seal) -> list[Attachment]:
        """Those that this seal is a writer, or the reader, to: not the seal of a copy whose writes
        are followed block by block."""
        return [a for a in self._of(seal) if not a.accounted[seal.request.tag or ""]]

    @staticmethod
    def _may_write(seal: Seal, about: About) -> bool:
        """Without telling before."""
        return seal.request.iomode is IoMode.RW and about.writes is Writes.ANY

    # For copies (travel.py)

    def of_file(self, file: FileId, span: ByteRange | None) -> list[Attachment]:
        """Those of a file (its generation may be 0: not known) that touch the span."""
        return [
            attachment
            for attachment in self._attachments.values()
            if (about := attachment.store.about).file.same_inode(file)
            and file.generation in (0, about.file.generation)
            and (span is None or about.range.overlaps(span))
        ]

    async def adopt(self, about: About, parts: Iterator[tuple[Bytes, Bytes]]) -> Attachment:
        """A new attachment of a file that need not be sealed, with these tags and states. Raises
        Refusal when its path does not lead to it, or another has tags there."""
        profile = parse(about.profile, about.path)
        make, prove = await self._pool().run(keys.read, self._section.keys, about.secret, profile)
        async with self._grants.lock(about.file):
            if self.of_file(about.file, about.range):
                raise Refusal("already-attached", f"{about.path} has tags there by now")
            seals = [seal for seal in self._grants.life.table.of_file(about.file) if seal.live]
            anchor = anchor_of(seals[0]) if seals else -1
            store = await self._waited_for(
                about, functools.partial(self._built, about, parts, anchor)
            )
        attachment = Attachment(Layout(profile, store, make, prove), self._grants, self.errors)
        self._attachments[attachment.id] = attachment
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

    async def open_for_writers(self, attachment: Attachment) -> None:
        """Blocks that the holder of a live seal may write without telling are open."""
        for seal in attachment.seals():
            if self._may_write(seal, attachment.store.about):
                await attachment.move(BlockState.CLEAN, BlockState.OPEN, seal.effective)

    # When seals begin and end

    async def granted(self, seal: Seal) -> None:
        """Before the holder has its descriptor: check the range, where that is wanted, and note
        that a writer may be inside from now on."""
        for attachment in self._watching(seal):
            try:
                await attachment.notice_foreign(seal)
                if attachment.store.about.at_grant:
                    await self._verify_at_grant(attachment, seal)
                if self._may_write(seal, attachment.store.about):
                    await attachment.move(BlockState.CLEAN, BlockState.OPEN, seal.effective)
            except (Refusal, OSError) as error:
                # A writer that is not noted would make true data pass for corrupt.
                self._attachments.pop(attachment.id, None)
                reason = f"attachment {attachment.id} is not used any more in this run: {error}"
                self._events.publish("alarm", seal.id, reason=reason)

    async def _verify_at_grant(self, attachment: Attachment, seal: Seal) -> None:
        """A holder that was given its descriptor by us is quiet: it has it not yet. What was
        written before is told by the file's change time."""
        ours = seal.request.path is not None and seal.request.holder.pid is None
        least = Stance.FREE if ours else Stance.NOISY
        tally = await attachment.verify("grant", seal.effective, quiet=True, seal=seal, least=least)
        self._alarm(attachment, tally, "grant", seal)

    async def returning(self, seal: Seal, part: ByteRange | None) -> bool:
        """Nothing of the seal is mapped any more, and it still keeps others away: compare what was
        not open, and tag what was. What cannot be done in time is left to `_heard`. Whether it took
        any time."""
        found = self._watching(seal)
        for attachment in found:
            work = asyncio.ensure_future(self._settle(attachment, seal, part or seal.effective))
            done, _ = await asyncio.wait([work], timeout=self._section.return_seconds)
            if not done:
                work.cancel()
                await asyncio.wait([work])
                log.warning(
                    "attachment %s: the return of seal %s does not wait longer",
                    attachment.id,
                    seal.id,
                )
            elif (error := work.exception()) is not None:
                reason = f"attachment {attachment.id} at a return: {error}"
                self._events.publish("alarm", seal.id, reason=reason)
        return bool(found)

    def returned_not(self, seal: Seal) -> None:
        """A return was refused: what it may have tagged can be written again."""
        for attachment in self._watching(seal):
            if self._may_write(seal, attachment.store.about):
                self._tasks.spawn(
                    f"a return of {seal.id} was refused",
                    attachment.move(BlockState.CLEAN, BlockState.OPEN, seal.effective),
                )

    async def _settle(self, attachment: Attachment, seal: Seal, part: ByteRange) -> None:
        if self._may_write(seal, attachment.store.about):
            await attachment.move(BlockState.CLEAN, BlockState.OPEN, part)
        tally = await attachment.verify("return", part, quiet=True, seal=seal)
        self._alarm(attachment, tally, "return", seal)
        others = [other for other in attachment.seals() if other is not seal]
        if attachment.store.about.writes is Writes.ANY and not any(
            self._may_write(other, attachment.store.about) for other in others
        ):
            await attachment.tag(BlockState.OPEN, part)
        if not others:
            whole = part.hull(attachment.store.about.range) == part
            await attachment.remember_time(whole=whole)

    def _heard(self, event: Event) -> None:
        """A seal is over: what it leaves open was cut off."""
        if event.name != "state" or event.seal is None or event.data["to"] in states.LIVE:
            return
        seal = self._grants.life.table.get(event.seal)
        if seal is not None:
            for attachment in self._of(seal):
                self._tasks.spawn(f"after the end of {seal.id}", self._after(attachment, seal))

    async def _after(self, attachment: Attachment, seal: Seal) -> None:
        with suppress(Refusal):
            await seal.released.wait()
            if not any(self._may_write(s, attachment.store.about) for s in attachment.seals()):
                await self._cut_off(
                    attachment, "return" if seal.state is State.RETURNED else "end", seal
                )

    async def _cut_off(self, attachment: Attachment, at: str, seal: Seal | None) -> None:
        """Open blocks that nobody writes any more become suspect, and are told."""
        count = await attachment.move(BlockState.OPEN, BlockState.SUSPECT)
        if not count:
            return
        whole = attachment.store.about.range
        finding = Finding(0, whole, BlockState.SUSPECT)
        error = attachment.error(finding, "suspect", at, seal)
        await attachment.tell([msgspec.structs.replace(error, more=count - 1)])

    def _alarm(
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

    def counters(self) -> dict[str, int]:
        return dict(self.errors.counts)


def _removed(building: asyncio.Future[TagStore]) -> None:
    """Nobody waits for this store any more."""
    if not building.cancelled() and building.exception() is None:
        call_later("tags", building.result().remove)


def _open_to_ask(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        code = "no-such-file" if isinstance(error, FileNotFoundError) else "io-error"
        raise Refusal(code, f"{path}: {error.strerror}", {"path": path}) from None


def _about(seal: Seal, profile: Profile, request: PiAttach) -> About:
    """The whole blocks inside the seal's range. Raises Refusal when there is none."""
    size = profile.granularity
    span = seal.range
    if size:
        start = -(-span.offset // size) * size
        end = span.end // size * size
        if start >= end:
            raise Refusal("bad-request", f"the seal has no whole block of {size} bytes")
    else:
        start, end = span.offset, span.end
    if profile.alignment and start % profile.alignment:
        raise Refusal(
            "bad-request",
            f"{profile.name} wants an offset that is a multiple of {profile.alignment}",
        )
    return About(
        id=secrets.token_hex(8),
        file=seal.file,
        path=seal.path,
        profile=profile.described(),
        range=ByteRange(start, end - start),
        uncovered=span.length - (end - start),
        tag=request.tag,
        storage=request.storage,
        secret=request.secret,
        writes=request.writes,
        at_grant=request.at_grant,
        owner=seal.process.holder.uid,
        made=time.time(),
    )


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
