"""Copies as jobs of the service: who may, with which files, in a process of its own."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from sealsvc.copies.measured import Measured
from sealsvc.copies.result import parse_token
from sealsvc.copies.tags import CopiedRange, Tags
from sealsvc.copies.tasks import Task, Update
from sealsvc.core.errors import TABLE, Refusal
from sealsvc.core.model import ByteRange, FileId, IoMode, Kind
from sealsvc.core.paths import lies_below
from sealsvc.jobs.jobs import Job, JobRunner
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.paths import Paths, concealed
from sealsvc.lifecycle.policy import Policy
from sealsvc.linux import native
from sealsvc.linux.processes import Peer
from sealsvc.protocol.admin import JobInfo, JobKind
from sealsvc.protocol.copies import CopyTrustReport, CopyTrustRow, StartCopy, spec_of
from sealsvc.protocol.seals import Grant
from sealsvc.runtime import closing
from sealsvc.runtime.limits import leaves_as_many
from sealsvc.runtime.users import User, Users

log = logging.getLogger(__name__)

RUNNING = 8  # copies at a time
RUNNING_EACH = 2  # of one user that is no operator
_LINE = 256 * 1024
_END_WITHIN = 30.0  # seconds that a cancelled copy has to tell how far it came


class CopyJobs:
    """`socket` is where the service listens; `kept` the file of rates and self-tests.
    `tags` goes with the bytes; None where there is no integrity."""

    def __init__(
        self,
        jobs: JobRunner,
        grants: Grants,
        users: Users,
        paths: Paths,
        socket: str,
        kept: Path,
        tags: Tags | None,
    ) -> None:
        self._jobs, self._grants, self._users, self._paths = jobs, grants, users, paths
        self._socket, self._kept = socket, kept
        self.tags = tags

    @property
    def _policy(self) -> Policy:
        return self._grants.policy

    async def start(self, peer: Peer, user: User, request: StartCopy, fds: list[int]) -> JobInfo:
        """Takes `fds` over: source and destination, or one for both."""
        try:
            if self._grants.host.simulated:
                raise Refusal("filesystem-unsupported", "there are no files in a simulation")
            if request.recall and not self._policy.is_operator(peer):
                raise Refusal("denied", f"uid {peer.uid} may not recall seals", {"uid": peer.uid})
            self._refuse_too_many(peer, request.principal)
            if bool(fds) == (request.source is not None or request.destination is not None):
                raise Refusal("bad-request", "send descriptors, or name both files by path")
            if not fds:
                fds += await self._opened(peer, request)
            if len(fds) == 1:
                fds.append(os.dup(fds[0]))
            files = await self._users.look(user, _checked, *fds)
            task = self._task(peer, request, files, fds)
            way = await self._users.look(user, _way, task, fds)
        except BaseException:
            closing.close_later(("user", peer.uid), fds)
            raise

        async def work(job: Job) -> dict[str, Any]:
            return await self._with_tags(job, task, peer, fds, way)

        source, path = (os.readlink(f"/proc/self/fd/{fd}") for fd in fds)
        return await self._jobs.begin(
            JobKind.COPY,
            work,
            request.destination or path,
            request.principal,
            uid=peer.uid,
            source=request.source or source,
        )

    async def trust(self) -> CopyTrustReport:
        return await self._grants.workers.run(self._trust)

    def _trust(self) -> CopyTrustReport:
        rows = []
        for name, pair in sorted(Measured(self._kept).pairs.items()):
            for strategy in sorted({*pair.rates, *pair.trust}):
                rate, tested = pair.rates.get(strategy), pair.trust.get(strategy)
                rows.append(
                    CopyTrustRow(
                        pair=name,
                        strategy=strategy,
                        rate=rate.rate if rate else None,
                        self_test=tested.outcome if tested else "",
                        at=max(rate.at if rate else 0.0, tested.at if tested else 0.0),
                        note=tested.note if tested else "",
                    )
                )
        return CopyTrustReport(rows=rows)

    def _refuse_too_many(self, peer: Peer, principal: str) -> None:
        """Whoever is no operator of this machine leaves as many as it has for others."""
        asker = self._policy.asker
        running = [job for job in self._jobs.running if job.info.kind is JobKind.COPY]
        mine = sum(
            asker(-1 if job.uid is None else job.uid, job.info.principal)
            == asker(peer.uid, principal)
            for job in running
        )
        operator = self._policy.is_operator(peer)
        full = len(running) >= RUNNING or (not operator and mine >= RUNNING_EACH)
        alone = operator and not principal
        if full or not (alone or leaves_as_many(mine, len(running), RUNNING)):
            message = f"{len(running)} copies are under way, {mine} of them for who asks"
            raise Refusal("limit-reached", message, retry_after=5.0)

    async def _opened(self, peer: Peer, request: StartCopy) -> list[int]:
        """By path: below a root, by no symbolic link, and below the directories of who asks."""
        if not self._policy.is_operator(peer):
            raise Refusal(
                "denied",
                f"uid {peer.uid} may not name files by path: open them and pass descriptors",
                {"uid": peer.uid},
            )
        if request.source is None or request.destination is None:
            raise Refusal("bad-request", "name both files")
        fds: list[int] = []
        try:
            if request.source == request.destination:
                return [await self._open(request.source, request.below, writable=True)]
            fds.append(await self._open(request.source, request.below, writable=False))
            fds.append(await self._open(request.destination, request.below, writable=True))
        except BaseException:
            closing.close_later(("user", peer.uid), fds)
            raise
        return fds

    async def _open(self, path: str, below: list[str] | None, *, writable: bool) -> int:
        if below is not None and not lies_below(path, below):
            raise Refusal("no-such-file", f"{path} does not exist", {"path": path})

        def work() -> int:
            return self._grants.host.open_path(path, self._policy.roots, writable=writable).fd

        try:
            return await self._paths.run(path, work)
        except Refusal as refusal:
            raise concealed(refusal, path, below) from None

    def _task(
        self, peer: Peer, request: StartCopy, files: tuple[FileId, FileId], fds: list[int]
    ) -> Task:
        table = self._grants.machine.table
        held = [tuple(seal.id for seal in table.of_file(file) if seal.live) for file in files]
        return Task(
            socket=self._socket,
            uid=peer.uid,
            measured=str(self._kept),
            seals_of_source=held[0],
            seals_of_destination=held[1],
            unsealable=self._unsealable(peer, fds),
            **spec_of(request),
        )

    def _unsealable(self, peer: Peer, fds: list[int]) -> str:
        """Why policy would not let the asker itself take the seals that its copy takes."""
        try:
            for fd in fds:
                reads = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                mode = IoMode.READ if reads else IoMode.RW
                wanted = Grant(id=0, kind=Kind.EXCLUSIVE, iomode=mode)
                self._policy.authorise_grant(peer, wanted, 1)
        except Refusal as refusal:
            return refusal.message
        return ""

    async def _with_tags(
        self, job: Job, task: Task, peer: Peer, fds: list[int], way: CopiedRange
    ) -> dict[str, Any]:
        """The source's tags go with the data, however the copy ends."""
        journey = None
        try:
            if self.tags is not None and not task.dry_run:
                asker = self._policy.asker(peer.uid, job.info.principal)
                journey = await self.tags.begin(way, job.info.path or "", asker)
        except BaseException:
            closing.close_later(("user", peer.uid), fds)
            raise
        if self.tags is None or journey is None:
            return await self._run(job, task, peer, fds)
        try:
            result = await self._run(job, task, peer, fds)
        except BaseException:
            await self._tagged(job, journey, job.info.result)
            raise
        return await self._tagged(job, journey, result)

    async def _tagged(self, job: Job, journey: Any, result: dict[str, Any]) -> dict[str, Any]:
        assert self.tags is not None
        token = result.get("token")
        done = parse_token(token).done if token else ()
        self._jobs.tell(job, step="tags", result=result)
        tags = await self.tags.finish(journey, done, whole=bool(result.get("whole")))
        self._jobs.tell(job, result=result | {"tags": tags})
        return job.info.result

    async def _run(self, job: Job, task: Task, peer: Peer, fds: list[int]) -> dict[str, Any]:
        try:
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sealsvc.copies", *map(str, fds)),
                pass_fds=fds,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_LINE,
            )
        finally:
            closing.close_later(("user", peer.uid), fds)
        try:
            return await self._follow(job, task, child)
        except asyncio.CancelledError:
            await self._ended(job, child)
            raise
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    async def _follow(
        self, job: Job, task: Task, child: asyncio.subprocess.Process
    ) -> dict[str, Any]:
        assert child.stdin and child.stdout and child.stderr  # noqa: PT018
        child.stdin.write(msgspec.json.encode(task))
        child.stdin.close()
        result = await self._listen(job, child)
        if result is None:
            said = (await child.stderr.read()).decode(errors="replace")
            await child.wait()
            raise Refusal("io-error", f"the copying process ended: {said[-500:].strip()}")
        await child.wait()
        return result

    async def _listen(self, job: Job, child: asyncio.subprocess.Process) -> dict[str, Any] | None:
        assert child.stdout
        async for line in child.stdout:
            update = msgspec.json.decode(line, type=Update)
            if update.code:
                raise Refusal(update.code if update.code in TABLE else "io-error", update.error)
            if update.result is not None:
                return update.result
            self._jobs.tell(job, done=update.done, total=update.total, step=update.step)
        return None

    async def _ended(self, job: Job, child: asyncio.subprocess.Process) -> None:
        """Cancelled: it says what is done, and how to go on."""
        with suppress(ProcessLookupError):
            child.terminate()
        with suppress(TimeoutError, Refusal):
            result = await asyncio.wait_for(self._listen(job, child), _END_WITHIN)
            await asyncio.wait_for(child.wait(), _END_WITHIN)
            self._jobs.tell(job, result=result or {})


def _way(task: Task, fds: Sequence[int]) -> CopiedRange:
    """In a thread."""
    found = [os.fstat(fd) for fd in fds]
    source, there = (
        FileId(status.st_dev, status.st_ino, native.generation(fd) or 0)
        for fd, status in zip(fds, found, strict=True)
    )
    size = found[0].st_size
    end = size if task.length is None else min(size, task.offset + task.length)
    to = task.offset if task.to is None else task.to
    asked = ByteRange(task.offset, max(0, end - task.offset))
    return CopiedRange(source, there, asked, to - task.offset)


def _checked(source: int, there: int) -> tuple[FileId, FileId]:
    """In a thread. Do the descriptors give the rights that a copy takes?"""
    modes = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in (source, there)]
    if any(mode & os.O_PATH for mode in modes):
        raise Refusal("bad-request", "a descriptor with O_PATH gives no right to read or write")
    if modes[0] & os.O_ACCMODE == os.O_WRONLY or modes[1] & os.O_ACCMODE != os.O_RDWR:
        raise Refusal("denied", "open the source for reading and the destination for both (O_RDWR)")
    found = [os.fstat(fd) for fd in (source, there)]
    return FileId(found[0].st_dev, found[0].st_ino), FileId(found[1].st_dev, found[1].st_ino)
