"""Copies that clients with a ring ask for (SEAL_CMD_COPY_RANGE): jobs like others, between two
files that the client has registered, for a limited time each."""

from __future__ import annotations

import asyncio
import os

from sealsvc.copies.jobs import CopyJobs
from sealsvc.copies.result import parse_token
from sealsvc.core.errors import Refusal
from sealsvc.jobs.jobs import JobRunner
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux.processes import Peer
from sealsvc.protocol.copies import StartCopy
from sealsvc.rings.registrations import Rings
from sealsvc.rings.tracking import Command
from sealsvc.runtime import closing
from sealsvc.runtime.users import Users

PATIENCE = 20.0  # seconds; the keeper's (COMMAND_PATIENCE_NS) leaves time to flush


class RingCopies:
    def __init__(self, copies: CopyJobs, jobs: JobRunner, rings: Rings, users: Users) -> None:
        self._copies, self._jobs, self._rings, self._users = copies, jobs, rings, users

    async def carry_out(self, command: Command) -> tuple[int, int]:
        """Copy until all is done, PATIENCE seconds are over, or a registration has ended. Returns
        0 or -errno, and the bytes from the start of the range that are on the device. Raises
        Refusal."""
        source = self._rings.registration(command.ring, command.file)
        there = self._rings.registration(command.ring, command.slot)
        if source is None or there is None:
            raise Refusal("try-later", "a registration has ended")
        holder = there.process.holder
        peer = Peer(pid=holder.pid, uid=holder.uid, gid=-1)
        fds = await self._opened(source, there)
        # The registrations are seals: another on either file could not be had.
        request = StartCopy(
            id=0, offset=command.offset, length=command.length, to=command.to_offset, seals=False
        )
        job = await self._copies.start(peer, self._users.of(peer.uid), request, fds)
        return await self._followed(job.id, command.offset, source, there)

    async def _opened(self, source: Seal, there: Seal) -> list[int]:
        """Descriptions of our own: the anchors' offsets and flags are shared."""
        fds: list[int] = []
        try:
            for seal, flags in ((source, os.O_RDONLY), (there, os.O_RDWR)):
                path = f"/proc/self/fd/{seal.hold.anchor}"
                pool = self._rings.grants.workers.of(seal.file.device)
                fds.append(await pool.run(os.open, path, flags | os.O_CLOEXEC))
        except BaseException:
            closing.close_later(("user", there.process.holder.uid), fds)
            raise
        return fds

    async def _followed(self, job: str, offset: int, *parents: Seal) -> tuple[int, int]:
        waits = [asyncio.ensure_future(parent.released.wait()) for parent in parents]
        ended = asyncio.ensure_future(self._jobs.ended(job))
        try:
            await asyncio.wait(
                [ended, *waits], timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in (ended, *waits):
                wait.cancel()
        info = await self._jobs.cancel(job)
        if "token" not in info.result:
            raise Refusal("io-error", info.error or "the copy did not tell how far it came")
        copied = 0
        if info.result["durable"]:
            done = parse_token(info.result["token"]).done
            copied = done[0].length if done and done[0].offset == offset else 0
        return (0 if copied else -int(info.result["errno"])), copied
