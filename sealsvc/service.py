"""What each request does: from a message to an answer."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from sealsvc import (
    __version__,
    clock,
    closing,
    even_time,
    extents,
    foreign,
    native,
    processes,
    states,
    validation,
    views,
    wire,
)
from sealsvc.audit import audit, present_map
from sealsvc.claims import Claims
from sealsvc.control import Connection, Reply
from sealsvc.copies.jobs import CopyJobs
from sealsvc.copies.relocation.job import Relocations
from sealsvc.copies.relocation.requests import Quiesce, Relocate
from sealsvc.copies.requests import CopyTrust, StartCopy
from sealsvc.desk import Desk, asked_at_desk
from sealsvc.enforce import Enforcer, EnforcerSet
from sealsvc.errors import Refusal
from sealsvc.exports.requests import StopExport
from sealsvc.exports.stopping import stop_export
from sealsvc.filesystem import Filesystem
from sealsvc.grants import Asker, Grants, Passed, passed_of
from sealsvc.history import Historian
from sealsvc.holders import Holders
from sealsvc.integrity.channels import PiChannels
from sealsvc.integrity.device_messages import AnyRequest as ChannelRequest
from sealsvc.integrity.messages import PiQuery
from sealsvc.integrity.service import Integrity, asked_of_integrity
from sealsvc.limits import RateLimit
from sealsvc.measures import MeasuresTaken
from sealsvc.messages import (
    MAX_MESSAGE,
    VERSION,
    AnyRequest,
    Attach,
    Audit,
    AuditReport,
    Downgrade,
    EnforcerInfo,
    Extent,
    ExtentPage,
    Extents,
    FilesystemInfo,
    FilesystemList,
    Filesystems,
    Forgotten,
    Gap,
    Grant,
    HolderSpec,
    IssueClaim,
    Keyed,
    List,
    Mapped,
    PastEvents,
    PmemRegion,
    Recall,
    RecallAny,
    RecallOutcome,
    RecallProgress,
    RecallReport,
    RecallSeals,
    Reclaim,
    Register,
    Registered,
    RegistryInfo,
    Renew,
    Result,
    Return,
    SealInfo,
    SealPage,
    ServiceStatus,
    Show,
    Simulate,
    Simulated,
    Status,
)
from sealsvc.model import ByteRange, Kind, State
from sealsvc.once import Once, digest_of
from sealsvc.overview import Redeem
from sealsvc.paths import Paths
from sealsvc.policy import Policy, lies_below
from sealsvc.processes import Peer, Process
from sealsvc.protocol import Request
from sealsvc.recall import Recaller
from sealsvc.records import RegistryRequest
from sealsvc.returns import Returns
from sealsvc.rings import RingClient, Rings
from sealsvc.seals import Seal
from sealsvc.states import Step
from sealsvc.users import Received, User, Users

T = TypeVar("T")

# Requests that change something, but for grants, of which more is told; and what of them is not.
_TOLD = (Keyed, Forgotten, Reclaim)
_NEEDS_KEEPER = (Keyed, Attach, Redeem, Forgotten)
_RECALLS = 500  # outcomes in one answer
_CLOSED_WITHIN = 1.0  # seconds
_UNTOLD = {"id", "v", "key", "wait"}


class Service:
    def __init__(
        self,
        grants: Grants,
        returns: Returns,
        recaller: Recaller,
        policy: Policy,
        enforcers: EnforcerSet,
        once: Once,
        historian: Historian,
        users: Users,
        kernel: str,
    ) -> None:
        self.grants, self.returns, self.recaller = grants, returns, recaller
        self.life, self.table = grants.life, grants.life.table
        self.policy, self.enforcers, self.once, self.kernel = policy, enforcers, once, kernel
        self.historian, self.registry, self.users = historian, grants.registry, users
        self.paths = Paths(grants.host, grants.workers, policy)
        self.holders = Holders(recaller.fencing.holder_exited)
        self.rate = RateLimit(policy.section.grants_per_second, policy.section.grants_burst)
        self.started = clock.now()
        self.connections: Callable[[], int] = lambda: 0
        # Raises Refusal while the keeper does not answer: the event loop would wait for it.
        self.require_keeper: Callable[[], None] = lambda: None
        self.rings: Rings | None = None
        self.measures, self.claims = MeasuresTaken(), Claims()
        self.desk: Desk | None = None
        self.integrity: Integrity | None = None
        self.copies: CopyJobs | None = None
        self.pi_channels = PiChannels(grants)
        self.relocations: Relocations | None = None
        self.simulate: Callable[[Simulate], Awaitable[dict[str, Any]]] | None = None

    async def handle(self, connection: Connection, request: AnyRequest, fds: Received) -> Reply:
        if isinstance(request, _NEEDS_KEEPER):
            self.require_keeper()
        if isinstance(request, Register):
            return await self._register(connection, request, fds)
        if isinstance(request, Grant):
            with self.measures.timed("grant"):
                return await self._grant(connection, request, fds)
        if isinstance(request, Attach):
            return self._rings().attach(connection, request)
        if isinstance(request, Redeem):
            return await self._redeem(connection, request)
        if isinstance(request, ChannelRequest):
            return await self.pi_channels.answer(connection, request, fds)
        if isinstance(request, PiQuery) and self.integrity is not None:
            return Reply(await self.integrity.answer(connection.peer, request, fds))
        if isinstance(request, StartCopy) and fds:
            return Reply(await self._copy(connection, request, fds))
        if isinstance(request, Keyed) and request.key:
            act = functools.partial(self._told, connection, request)
            asker = self.policy.asker(connection.peer.uid, request.principal)
            result, _ = await self.once.run(asker, request, digest_of(request), act)
            return Reply(result)
        return Reply(await self._told(connection, request))

    async def _told(self, connection: Connection, request: AnyRequest) -> Result:
        """Act, and have the registry know who asked for it, where it changes something."""
        if not isinstance(request, _TOLD):
            return await self._act(connection, request)
        outcome = "internal"
        try:
            result = await self._act(connection, request)
            outcome = "done"
        except Refusal as refusal:
            outcome = refusal.code
            raise
        finally:
            terms = msgspec.structs.asdict(request)
            seal = terms.pop("seal", None)
            said = {name: terms[name] for name in terms.keys() - _UNTOLD if terms[name]}
            operation = type(request).__struct_config__.tag
            self.registry.asked(connection.peer, str(operation), seal, outcome=outcome, **said)
        return result

    async def _act(self, connection: Connection, request: AnyRequest) -> Result:
        peer = connection.peer
        match request:
            case Return():
                with self.measures.timed("return"):
                    return await self._return(peer, request)
            case Downgrade():
                seal = self._seal_at(peer, request.seal, request.seqid)
                await self.returns.downgrade(seal)
                return seal.info()
            case Renew():
                return self._renew(peer, request)
            case RecallProgress():
                seal = self._seal_at(peer, request.seal, request.seqid)
                self.recaller.progress(seal)
                return seal.info()
            case Forgotten():
                return await self._forgotten(peer, request)
            case Mapped():
                seal = self._seal_at(peer, request.seal, request.seqid)
                return await validation.validate(self.grants, seal, request.address)
            case Reclaim():
                return self._reclaim(connection, request)
            case Show():
                return self._shown(peer, request.seal)
            case List():
                await self._refuse_foreign(connection, request, request.path)
                return await self._list(peer, request)
            case Extents():
                return await self._extents(peer, request)
            case RecallSeals():
                path = request.path or request.filesystem
                await self._refuse_foreign(connection, request, path, request.pid)
                return await self._recall(peer, request)
            case Audit():
                chosen = [self._seal(peer, request.seal)] if request.seal else self.seen(peer)
                return _shortened(await audit(self.grants, self.recaller, chosen))
            case _ if isinstance(request, RegistryRequest):
                return await self.historian.answer(peer, request)
            case Filesystems():
                return await self._filesystems(request.below)
            case PastEvents():
                if not self.policy.is_operator(peer):
                    raise Refusal("denied", f"uid {peer.uid} may not watch events")
                return self.life.events.page(request.since, request.limit, MAX_MESSAGE - 1024)
            case Status():
                return self._status(request.below)
            case IssueClaim():
                self.policy.authorise_claim(peer, request)
                await self.paths.identify(request.path or "", request.only.below or ["/"])
                await self._refuse_foreign(connection, request, request.path)
                asker = self.policy.asker(peer.uid, request.principal)
                return self.claims.issue(peer, asker, request)
            case _ if self.integrity is not None and asked_of_integrity(request):
                return await self.integrity.answer(peer, request)
            case StartCopy() if self.copies is not None:
                return await self.copies.start(peer, connection.user, request, [])
            case Relocate() if self.relocations is not None:
                return await self.relocations.start(peer, request)
            case Quiesce() if self.relocations is not None:
                return await self.relocations.quiesce(
                    self._seal_at(peer, request.seal, request.seqid)
                )
            case CopyTrust() if self.copies is not None:
                return await self.copies.trust()
            case StopExport():
                if not self.policy.is_operator(peer):
                    raise Refusal("denied", f"uid {peer.uid} may not stop exports")
                if self.grants.host.simulated:
                    raise Refusal("no-such-export", "a simulated service has no exports")
                return await stop_export(request)
            case _ if self.desk is not None and asked_at_desk(request):
                return await self.desk.answer(peer, request)
            case Simulate() if self.simulate is not None:
                if not self.policy.is_operator(peer):
                    raise Refusal("denied", f"uid {peer.uid} may not simulate")
                return Simulated(result=await self.simulate(request))
        raise Refusal("unknown-operation", "the service does not serve this operation")

    async def _copy(self, connection: Connection, request: StartCopy, fds: Received) -> Result:
        """Between the files that were sent. What has a key is not made again, and what was sent
        with it is closed with the request."""
        if self.copies is None:
            raise Refusal("unknown-operation", "the service does not serve this operation")
        if request.key:
            raise Refusal("bad-request", "a copy between descriptors takes no key")
        taken = [fds.pop() for _ in range(len(fds))]
        job = await self.copies.start(connection.peer, connection.user, request, taken[::-1])
        self.registry.asked(connection.peer, "start-copy", None, job=job.id, path=job.path)
        return job

    # Grants and returns

    async def _grant(self, connection: Connection, request: Grant, fds: Received) -> Reply:
        if not request.key:
            return await self._new_grant(connection, request, fds)
        made: list[int] = []
        # In a thread: the fdinfo of what was sent may block.
        digest = await self.users.look(connection.user, digest_of, request, fds.numbers)

        async def act() -> Result:
            reply = await self._new_grant(connection, request, fds, digest=digest)
            made.extend(reply.fds)
            return reply.result

        asker = self.policy.asker(connection.peer.uid, request.principal)
        result, again = await self.once.run(asker, request, digest, act)
        if not again:
            return Reply(result, made)
        # Our copy of the descriptor that was sent before must not pass for the holder's.
        await closing.closed(("user", connection.peer.uid), _CLOSED_WITHIN)
        return await self._granted_before(request, result)

    async def _granted_before(self, request: Grant, result: Result) -> Reply:
        """The seal as it stands now. Its descriptor is sent once more when the first was lost on
        the way: when no description has the seal's mark any more."""
        assert isinstance(result, SealInfo)
        seal = self.table.get(result.id)
        if seal is None:
            return Reply(self.life.recorded(result.id) or result)
        if request.path is None or request.holder.pid is not None or request.holder.pidfd:
            return Reply(seal.info())
        fd = await self.grants.hand_over_again(seal)
        return Reply(seal.info(), [] if fd is None else [fd])

    def _rings(self) -> Rings:
        if self.rings is None:
            raise Refusal("unknown-operation", "there is no keeper, and so no rings, here")
        return self.rings

    async def _register(self, connection: Connection, request: Register, fds: Received) -> Reply:
        rings = self._rings()
        if request.key or request.holder != HolderSpec():
            raise Refusal("bad-request", "a registration has neither `key` nor `holder`")
        make = functools.partial(rings.register, connection, request)
        reply = await self._new_grant(connection, request, fds, make)
        assert isinstance(reply.result, SealInfo)
        place = reply.result.ring
        return Reply(Registered(file=place.file if place else -1, seal=reply.result), reply.fds)

    async def _make(
        self, connection: Connection, request: Grant, asker: Asker, passed: Passed | None
    ) -> tuple[Seal, int]:
        if self.rings is None:
            seal, fd = await self.grants.grant(request, asker, passed)
        else:
            before = self.rings.mirror(connection)
            seal, fd = await self.grants.grant(request, asker, passed, before)
        self.holders.watch(seal)
        return seal, fd

    async def _new_grant(
        self,
        connection: Connection,
        request: Grant,
        fds: Received,
        make: Callable[[Asker, Passed | None], Awaitable[tuple[Seal, int]]] | None = None,
        digest: bytes = b"",
    ) -> Reply:
        user = connection.user
        self._authorise(connection.peer, request, len(fds))
        self.rate.take(connection.peer.uid)
        process = await self._holder(connection, request, fds)
        passed = None
        try:
            await self._refuse_foreign(connection, request, request.path, request.holder.pid)
            self.policy.refuse_other_user(request.only, process.holder)
            passed = await self._passed(user, process, request, fds)
            if passed is not None and not passed.writable:
                request = self.policy.terms_of_reader(connection.peer, request)
            await validation.refuse_unmappable(self.grants, request, passed)
        except BaseException:
            process.close()
            if passed is not None:
                user.close_later([passed.fd])
            raise
        asker = Asker(connection.peer, process, connection, digest)
        make = make or functools.partial(self._make, connection, request)
        seal, fd = await make(asker, passed)
        if self.integrity is not None:
            await self.integrity.granted(seal)
        if request.path is not None and request.holder.pid is None:
            return Reply(seal.info(), [fd])
        user.close_later([fd])
        return Reply(seal.info())

    async def _passed(
        self, user: User, process: Process, request: Grant, fds: Received
    ) -> Passed | None:
        """The file's descriptor: the one that was sent, or the holder's own by its number there."""
        if len(fds):
            fd = fds.pop()
        elif request.holder.fd is not None:
            fd = await self.users.fetch(user, _descriptor_of, process, request.holder.fd)
        else:
            return None
        try:
            return await self.users.look(user, passed_of, fd)
        except BaseException:
            user.close_later([fd])
            raise

    async def _refuse_foreign(
        self, connection: Connection, request: Request, path: str | None, pid: int | None = None
    ) -> None:
        """Paths and pids mean what they mean to the client. Those that come for a principal (by the
        REST API) are names of this machine."""
        client = connection.process
        if self.grants.host.simulated or request.principal:
            return
        if pid is not None:
            foreign.refuse_other_pids(client)
        if path is not None and not foreign.sees_our_files(client):
            await self.paths.run(
                path, foreign.refuse_other_file, client, path, self.grants.host.identify
            )

    def _authorise(self, peer: Peer, request: Grant, fds: int) -> None:
        try:
            self.policy.authorise_grant(peer, request, fds)
        except Refusal as refusal:
            self.grants.refused(refusal, request, peer)
            raise

    async def _redeem(self, connection: Connection, request: Redeem) -> Reply:
        """The grant that was promised, to the process that shows the claim."""
        with self.claims.redeem(request.claim, connection.peer) as issued:
            asker = Asker(issued.peer, connection.process.share(), connection)
            with self.measures.timed("grant"):
                seal, fd = await self.grants.grant(issued.grant, asker, None)
        self.holders.watch(seal)
        return Reply(seal.info(), [fd])

    async def _holder(self, connection: Connection, request: Grant, fds: Received) -> Process:
        spec = request.holder
        if spec.pidfd:
            if not fds:
                raise Refusal("bad-request", "holder.pidfd is true, but no descriptor was sent")
            return await self._process_of(connection, fds.pop())
        if spec.pid is not None:
            return self.grants.host.process(spec.pid)
        return connection.process.share()

    async def _process_of(self, connection: Connection, pidfd: int) -> Process:
        """Takes over what was sent as a pidfd, and may be anything."""
        try:
            holder = await self.users.look(connection.user, processes.holder_of, pidfd)
            if holder.uid != connection.peer.uid and not self.policy.is_operator(connection.peer):
                raise Refusal("denied", "the holder belongs to another user")
        except BaseException:
            connection.user.close_later([pidfd])
            raise
        return Process(holder, pidfd)

    async def _return(self, peer: Peer, request: Return) -> SealInfo:
        seal = self._seal_at(peer, request.seal, request.seqid)
        if request.range is None:
            await self.returns.give_back(seal, f"given back by process {peer.pid}")
        else:
            await self.returns.give_back_part(seal, request.range)
        return seal.info()

    def _renew(self, peer: Peer, request: Renew) -> SealInfo:
        seal = self._seal_at(peer, request.seal, request.seqid)
        ttl = seal.request.ttl if request.ttl is None else request.ttl
        self.life.change_terms(seal, ttl=ttl)
        if states.allowed(seal.state, Step.RENEW):
            self.life.step(seal, Step.RENEW, "renewed by its holder")
        self.life.events.publish("renewed", seal.id, ttl=ttl)
        return seal.info()

    async def _forgotten(self, peer: Peer, request: Forgotten) -> SealInfo:
        seal = self._seal(peer, request.seal)
        if not await self.returns.forget(seal) and seal.live:
            self.recaller.fencing.forgotten(seal)
        return seal.info()

    def _reclaim(self, connection: Connection, request: Reclaim) -> SealInfo:
        seal = self._seal(connection.peer, request.seal)
        if isinstance(seal.client, Connection) and seal.client.open:
            if seal.client is not connection:
                raise Refusal(
                    "seal-conflict", f"another connection receives the recalls of seal {seal.id}"
                )
        else:
            seal.client = connection
        if seal.state in (State.RECALLED, State.LOST):
            self.life.tell(seal)
        return seal.info()

    # Looking

    def _seal(self, peer: Peer, seal_id: str) -> Seal:
        seal = self.table.get(seal_id)
        if seal is None or not self.policy.may_see(peer, seal):
            raise Refusal("no-such-seal", f"there is no seal {seal_id}", {"seal": seal_id})
        return seal

    def _seal_at(self, peer: Peer, seal_id: str, seqid: int | None) -> Seal:
        """The seal, if it is still as whoever asks knows it."""
        seal = self._seal(peer, seal_id)
        if seqid is not None and seqid != seal.seqid:
            raise Refusal(
                "stale-seqid",
                f"seal {seal.id} has seqid {seal.seqid}, the request {seqid}",
                {"seqid": seal.seqid},
            )
        return seal

    def _shown(self, peer: Peer, seal_id: str) -> SealInfo:
        """Also of a seal that is over, while that is remembered."""
        found = self.life.recorded(seal_id)
        if found and (self.policy.is_operator(peer) or found.holder.uid == peer.uid):
            return found
        return self._seal(peer, seal_id).info()

    def seen(self, peer: Peer) -> list[Seal]:
        return [seal for seal in self.table if self.policy.may_see(peer, seal)]

    async def _list(self, peer: Peer, request: List) -> SealPage:
        # Whoever reads a long list asks for page after page: what was told is left out first.
        after = request.after or ""
        rest = [seal for seal in self.table if seal.id > after]
        if self.policy.is_operator(peer):
            chosen = rest
        else:
            chosen = [seal for seal in rest if self.policy.may_see(peer, seal)]
        if request.path is not None:
            chosen = await self.of_path(peer, chosen, request.path, request.below)
        chosen = views.chosen(chosen, request)
        chosen.sort(key=attrgetter("id"))
        page = _first_fitting(chosen[: request.limit], MAX_MESSAGE - 1024)
        more = len(chosen) > len(page)
        return SealPage(seals=page, next=page[-1].id if page and more else None)

    async def of_path(
        self, peer: Peer, seals: list[Seal], path: str, below: list[str] | None
    ) -> list[Seal]:
        """The seals on the file at `path`. Only operators are told that a file does not exist."""
        operator, began = self.policy.is_operator(peer), time.monotonic()
        try:
            file = await self.paths.identify(path, below if operator else ["/"])
        except Refusal:
            if operator:
                raise
            return [seal for seal in seals if seal.path == path]
        finally:
            if not operator:
                await even_time.passes(began)
        here = {seal.id for seal in self.table.of_file(file)}
        return [seal for seal in seals if seal.id in here]

    async def _extents(self, peer: Peer, request: Extents) -> ExtentPage:
        if self.registry.enabled and not request.now and self.table.get(request.seal) is None:
            found = await self.historian.map_at_grant(peer, request.seal)
        else:
            seal = self._seal(peer, request.seal)
            found = await present_map(self.grants, seal) if request.now else seal.map
        end = request.start + min(request.limit, 400)
        rows = found[request.start : end]
        return ExtentPage(
            extents=[
                Extent(
                    logical=int(logical),
                    physical=int(physical),
                    length=int(length),
                    flags=extents.flag_names(int(flags)),
                )
                for logical, physical, length, flags in rows
            ],
            total=len(found),
            next=end if end < len(found) else None,
        )

    # Recalls

    async def _recall(self, peer: Peer, request: RecallSeals) -> RecallReport:
        scopes = (request.seal, request.path, request.filesystem, request.pid, request.all or None)
        if sum(scope is not None for scope in scopes) != 1:
            raise Refusal(
                "bad-request", "name exactly one scope: seal, path, filesystem, pid or all"
            )
        if request.any is not None and request.pid is None:
            raise Refusal("bad-request", "`any` needs the scope pid: whose seals")
        if request.seqid is not None and request.seal is None:
            raise Refusal("bad-request", "`seqid` needs the scope seal: whose seqid")
        if not self.policy.is_operator(peer):
            raise Refusal("denied", f"uid {peer.uid} may not recall seals")
        reason = request.reason or "operator"
        if request.pid is not None and request.any is not None:
            chosen = self.recaller.recall_any(request.pid, request.any, request.grace, reason)
            if request.wait:
                await self._until_given_back(chosen, min(request.any, len(chosen)))
        else:
            chosen = await self._scope(peer, request)
            for seal in chosen:
                self.recaller.recall(seal, reason, part=request.range, grace=request.grace)
            if request.wait:
                await self._until_over(chosen, request.range)
        if request.filesystem is not None or request.all:
            await self._forget(chosen)
        chosen.sort(key=lambda seal: not seal.live)
        told = [RecallOutcome(seal=seal.id, state=seal.state) for seal in chosen[:_RECALLS]]
        return RecallReport(recalled=told, more=len(chosen) - len(told))

    async def _until_given_back(self, chosen: list[Seal], count: int) -> None:
        while sum(not seal.live for seal in chosen) < count:
            released = [seal.released for seal in chosen if seal.live]
            await clock.within(clock.now() + 60.0, *released)

    async def _until_over(self, chosen: list[Seal], part: ByteRange | None) -> None:
        """Until each is over, or has given back what was wanted of it."""
        for seal in chosen:
            while seal.live and (part is None or seal.effective.overlaps(part)):
                await clock.within(clock.now() + (60.0 if part is None else 0.05), seal.released)

    async def _scope(self, peer: Peer, request: RecallSeals) -> list[Seal]:
        if request.seal is not None:
            return [self._seal_at(peer, request.seal, request.seqid)]
        if request.path is not None:
            here = self.table.of_file(await self.paths.identify(request.path, request.below))
            # A hard link below `below` may name a file that was sealed outside of it.
            return [
                s
                for s in here
                if (request.below is None or lies_below(s.path, request.below))
                and (request.range is None or s.effective.overlaps(request.range))
            ]
        if request.filesystem is not None:
            where = await self.paths.identify(request.filesystem)
            return [seal for seal in self.table if seal.file.device == where.device]
        if request.pid is not None:
            return [s for s in self.table if s.process.holder.pid == request.pid]
        return list(self.table)

    async def _forget(self, recalled: list[Seal]) -> None:
        """So that a file system whose seals are gone can be unmounted at once."""
        for filesystem in {seal.filesystem for seal in recalled}:
            for enforcer in self.enforcers.available:
                enforcer.forget(filesystem)
            await closing.closed(filesystem.device, _CLOSED_WITHIN)

    # The service itself

    async def _filesystems(self, below: list[str] | None) -> FilesystemList:
        host = self.grants.host

        def look(roots: Sequence[str]) -> list[tuple[Filesystem, tuple[int, int] | None]]:
            return [(found, host.region_of(found.device)) for found in host.filesystems(roots)]

        found = await self.grants.workers.run(look, self.policy.roots)
        seals = [s for s in self.table if below is None or lies_below(s.path, below)]
        counts = Counter(seal.file.device for seal in seals)
        return FilesystemList(
            filesystems=[
                self._filesystem(filesystem, region, counts[filesystem.device])
                for filesystem, region in found
            ]
        )

    def _filesystem(
        self, filesystem: Filesystem, region: tuple[int, int] | None, seals: int
    ) -> FilesystemInfo:
        able = [] if filesystem.unsupported else self.enforcers.available
        gaps: dict[str, Gap] = {}
        for kind in Kind:
            chosen, _ = self.enforcers.choose(filesystem, Grant(id=0, kind=kind))
            if chosen is not None:
                gaps |= {gap.risk: gap for gap in chosen.gaps(filesystem, kind)}
        return FilesystemInfo(
            mount=filesystem.mount,
            type=filesystem.type,
            device=filesystem.source,
            block_size=filesystem.block_size,
            reflink=filesystem.reflink,
            dax=filesystem.dax,
            enforcers=[enforcer.name for enforcer in able],
            supported=bool(able),
            reason=filesystem.unsupported or ("" if able else "no enforcer is available"),
            gaps=list(gaps.values()),
            seals=seals,
            pmem=None if region is None else PmemRegion(start=region[0], length=region[1]),
        )

    def _status(self, below: list[str] | None) -> ServiceStatus:
        counts: dict[str, int] = {}
        for seal in self.table:
            if below is None or lies_below(seal.path, below):
                counts[seal.state] = counts.get(seal.state, 0) + 1
        waiting = self.recaller.waiting.values()
        status = ServiceStatus(
            version=__version__,
            protocol=VERSION,
            pid=os.getpid(),
            uptime=clock.now() - self.started,
            simulated=self.grants.host.simulated,
            kernel=self.kernel,
            roots=self._roots(below),
            enforcers=[self._enforcer(enforcer) for enforcer in self.enforcers.enforcers],
            seals=counts,
            conflicts_waiting=sum(below is None or lies_below(w.path, below) for w in waiting),
            connections=0,
            counters={},
            registry=RegistryInfo(enabled=self.registry.enabled, lag=0, lost=0, troubles=[]),
            run=self.life.events.run,
        )
        return status if below is not None else self._whole(status)

    def _whole(self, status: ServiceStatus) -> ServiceStatus:
        """With what concerns the whole service."""
        registry = self.registry
        return msgspec.structs.replace(
            status,
            connections=self.connections(),
            counters={
                **self.grants.counters,
                **self.returns.counters,
                **self.recaller.counters,
                **self.recaller.fencing.counters,
            },
            registry=RegistryInfo(
                enabled=registry.enabled,
                lag=registry.lag,
                lost=registry.lost,
                troubles=registry.troubles,
                restarts=registry.restarts,
            ),
        )

    def _roots(self, below: list[str] | None) -> list[str]:
        """The roots that lie below one of the directories, or contain one."""
        return [
            root
            for root in self.policy.roots
            if below is None
            or lies_below(root, below)
            or any(lies_below(directory, [root]) for directory in below)
        ]

    def _enforcer(self, enforcer: Enforcer) -> EnforcerInfo:
        reason = self.enforcers.reasons[enforcer.name]
        return EnforcerInfo(name=enforcer.name, available=not reason, reason=reason)


def _shortened(report: AuditReport) -> AuditReport:
    """To what a message has room for, drift before the rest."""
    drifted = _fitting(report.drifted, MAX_MESSAGE // 4)
    unreadable = _fitting(report.unreadable, MAX_MESSAGE // 4)
    found = len(report.drifted) + len(report.unreadable)
    return AuditReport(
        checked=report.checked,
        drifted=drifted,
        unreadable=unreadable,
        more=found - len(drifted) - len(unreadable),
    )


def _fitting(items: list[T], room: int) -> list[T]:
    sizes = itertools.accumulate(len(wire.encoded(item)) + 1 for item in items)
    return [item for item, size in zip(items, sizes, strict=True) if size <= room]


def _first_fitting(seals: list[Seal], room: int) -> list[SealInfo]:
    """The first of them, as told, that a message has room for."""
    page: list[SealInfo] = []
    for seal in seals:
        info = seal.info()
        room -= len(wire.encoded(info)) + 1
        if room < 0:
            break
        page.append(info)
    return page


def push(seal: Seal, message: Recall | RecallAny) -> bool:
    """Deliver a recall to the connection that asked for the seal."""
    client = seal.client
    if isinstance(client, RingClient):
        return client.tell(seal, message)
    return isinstance(client, Connection) and client.send(message)


def _descriptor_of(process: Process, number: int) -> int:
    """In a thread: pidfd_getfd waits while the process is in execve (kernel/pid.c __pidfd_fget)."""
    try:
        return native.pidfd_getfd(process.pidfd, number)
    except OSError as error:
        raise Refusal(
            "bad-request",
            f"descriptor {number} of process {process.holder.pid}: {error.strerror}",
        ) from None
