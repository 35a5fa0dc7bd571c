"""What is asked of integrity: profiles, attachments, checks, tags, errors."""

from __future__ import annotations

import functools
import os
import secrets
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, IoMode, Kind
from sealsvc.core.paths import lies_below
from sealsvc.integrity import device, engine, scrub
from sealsvc.integrity.attachment import Attachment, Tally, anchor_of, no_such_attachment
from sealsvc.integrity.attachments import Attachments, may_write
from sealsvc.integrity.errors import fitting
from sealsvc.integrity.opening import described
from sealsvc.integrity.profiles import Profile, ProfileError, load
from sealsvc.integrity.store import About, BlockState
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.paths import concealed, no_such_file
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux.processes import Peer
from sealsvc.protocol import integrity
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
from sealsvc.runtime.config import IntegritySection
from sealsvc.runtime.limits import Asked
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.users import Received

_LISTED = 40


class IntegrityRequests:
    """Answers the requests of protocol/integrity.py. Everything that touches a file or a store
    happens in the threads of grants.workers."""

    def __init__(
        self, grants: Grants, tasks: Tasks, section: IntegritySection, attachments: Attachments
    ) -> None:
        self._grants, self._tasks, self._section = grants, tasks, section
        self._attachments = attachments
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

    async def load_profiles(self) -> None:
        """Anew from the directory, which may have changed."""
        found = await self._attachments.pool().run(load, Path(self._section.profiles))
        self._profiles, self._profile_errors = found

    # Requests

    async def answer(self, peer: Peer, request: AnyRequest, fds: Received | None = None) -> Result:
        if isinstance(request, PiQuery):
            return await self._query(peer, request, fds)
        return await self._handlers[type(request)](peer, request)

    async def _list_profiles(self, peer: Peer, request: PiProfiles) -> PiProfileList:  # noqa: ARG002
        await self.load_profiles()
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
        await self.load_profiles()
        profile = self._profiles.get(request.profile)
        if profile is None:
            raise Refusal(
                "no-such-profile",
                f"there is no profile {request.profile!r}",
                {"profiles": sorted(self._profiles)},
            )
        for other in self._attachments.of_seal(seal):
            raise Refusal(
                "already-attached",
                f"{seal.path} has the attachment {other.id} in that range; detach it first",
                {"attachment": other.id},
            )
        writable = seal.request.iomode is IoMode.RW
        if request.writes is Writes.DECLARED and writable and not request.quiet:
            raise Refusal("bad-request", "with declared writes the holder must be quiet meanwhile")
        self._refuse_values(profile, request)
        asker = self._grants.policy.asker(peer.uid, request.principal)
        about = _about(seal, profile, request, asker)
        attachment = await self._attachments.make(seal, profile, about)
        if not seal.live:
            await self._attachments.cut_off(attachment, "attach", seal)
        elif may_write(seal, about):
            await attachment.move(BlockState.CLEAN, BlockState.OPEN)
        return await attachment.info()

    def _refuse_values(self, profile: Profile, request: PiAttach) -> None:
        widths = {field.name: field.width for field in profile.fields}
        for name, value in (("tag", request.tag), ("storage", request.storage)):
            if value and value >= 1 << widths.get(name, 0):
                raise Refusal(
                    "bad-request", f"{name} {value} does not fit into {profile.name}'s field"
                )

    async def _detach(self, peer: Peer, request: PiDetach) -> PiAttachment:
        attachment = self._attachment(peer, request.attachment)
        await scrub.stop(attachment)
        told = await attachment.info()
        attachment.gone = True
        self._attachments.leave_out(attachment)
        await attachment.run(attachment.store.remove)
        return told

    async def _list(self, peer: Peer, request: PiAttachments) -> PiAttachmentList:
        seen = [
            attachment
            for attachment in self._attachments.sorted()
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
        self._attachments.alarm(attachment, tally, "verify", seal)
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
                scrub.run(attachment, first, pace, self._attachments.alarm),
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
        return await self._attachments.errors.page(
            request.after, min(request.limit, 20), request.wait
        )

    # Who may

    def _seal(self, peer: Peer, seal_id: str) -> Seal:
        seal = self._grants.machine.table.get(seal_id)
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
        for attachment in self._attachments.of_seal(seal):
            return attachment, seal
        raise Refusal("no-such-attachment", f"seal {seal.id} has no attachment")


def _open_to_ask(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        code = "no-such-file" if isinstance(error, FileNotFoundError) else "io-error"
        raise Refusal(code, f"{path}: {error.strerror}", {"path": path}) from None


def _about(seal: Seal, profile: Profile, request: PiAttach, asker: Asked) -> About:
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
        asked=asker,
        made=time.time(),
    )
