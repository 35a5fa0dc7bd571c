"""What happens to attachments when seals begin and end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from sealsvc.core import states
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, State
from sealsvc.integrity.attachment import Attachment
from sealsvc.integrity.attachments import Attachments, may_write
from sealsvc.integrity.store import BlockState
from sealsvc.integrity.verdict import PossibleWriters
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.events import Event
from sealsvc.protocol.integrity import (
    Writes,
)
from sealsvc.runtime.config import IntegritySection
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks

log = logging.getLogger(__name__)


class SealChanges:
    """Checks and tags ranges at grants and returns, and notes what was cut off."""

    def __init__(
        self,
        grants: Grants,
        events: EventLog,
        tasks: Tasks,
        section: IntegritySection,
        attachments: Attachments,
    ) -> None:
        self._grants, self._events, self._tasks = grants, events, tasks
        self._section, self._attachments = section, attachments

    def _watching(self, seal: Seal) -> list[Attachment]:
        """Those that this seal is a writer, or the reader, to: not the seal of a copy whose writes
        are followed block by block."""
        return [
            a for a in self._attachments.of_seal(seal) if not a.accounted[seal.request.tag or ""]
        ]

    # When seals begin and end

    async def granted(self, seal: Seal) -> None:
        """Before the holder has its descriptor: check the range, where that is wanted, and note
        that a writer may be inside from now on."""
        for attachment in self._watching(seal):
            try:
                await attachment.notice_foreign(seal)
                if attachment.store.about.at_grant:
                    await self._verify_at_grant(attachment, seal)
                if may_write(seal, attachment.store.about):
                    await attachment.move(BlockState.CLEAN, BlockState.OPEN, seal.effective)
            except (Refusal, OSError) as error:
                # A writer that is not noted would make true data pass for corrupt.
                self._attachments.leave_out(attachment)
                reason = f"attachment {attachment.id} is not used any more in this run: {error}"
                self._events.publish("alarm", seal.id, reason=reason)

    async def _verify_at_grant(self, attachment: Attachment, seal: Seal) -> None:
        """A holder that was given its descriptor by us is quiet: it has it not yet. What was
        written before is told by the file's change time."""
        ours = seal.request.path is not None and seal.request.holder.pid is None
        least = PossibleWriters.FREE if ours else PossibleWriters.NOISY
        tally = await attachment.verify("grant", seal.effective, quiet=True, seal=seal, least=least)
        self._attachments.alarm(attachment, tally, "grant", seal)

    async def returning(self, seal: Seal, part: ByteRange | None) -> bool:
        """Nothing of the seal is mapped any more, and it still keeps others away: compare what was
        not open, and tag what was. What cannot be done in time is left to heard(). Whether it took
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
            if may_write(seal, attachment.store.about):
                self._tasks.spawn(
                    f"a return of {seal.id} was refused",
                    attachment.move(BlockState.CLEAN, BlockState.OPEN, seal.effective),
                )

    async def _settle(self, attachment: Attachment, seal: Seal, part: ByteRange) -> None:
        if may_write(seal, attachment.store.about):
            await attachment.move(BlockState.CLEAN, BlockState.OPEN, part)
        tally = await attachment.verify("return", part, quiet=True, seal=seal)
        self._attachments.alarm(attachment, tally, "return", seal)
        others = [other for other in attachment.seals() if other is not seal]
        if attachment.store.about.writes is Writes.ANY and not any(
            may_write(other, attachment.store.about) for other in others
        ):
            await attachment.tag(BlockState.OPEN, part)
        if not others:
            whole = part.hull(attachment.store.about.range) == part
            await attachment.remember_time(whole=whole)

    def heard(self, event: Event) -> None:
        """A seal is over: what it leaves open was cut off."""
        if event.name != "state" or event.seal is None or event.data["to"] in states.LIVE:
            return
        seal = self._grants.machine.table.get(event.seal)
        if seal is not None:
            for attachment in self._attachments.of_seal(seal):
                self._tasks.spawn(f"after the end of {seal.id}", self._after(attachment, seal))

    async def _after(self, attachment: Attachment, seal: Seal) -> None:
        with suppress(Refusal):
            await seal.released.wait()
            if not any(may_write(s, attachment.store.about) for s in attachment.seals()):
                await self._attachments.cut_off(
                    attachment, "return" if seal.state is State.RETURNED else "end", seal
                )
