"""Handlers of requests for seals: from a client's message to a granted seal and its descriptor."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

from sealsvc.control.connection import Connection, Reply
from sealsvc.core.errors import Refusal
from sealsvc.lifecycle import validation
from sealsvc.lifecycle.grants import Grants, PassedDescriptor, Requester, passed_of
from sealsvc.lifecycle.paths import Paths
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux import native, processes
from sealsvc.linux.processes import Peer, Process
from sealsvc.monitor.holders import Holders
from sealsvc.protocol.admin import Redeem
from sealsvc.protocol.messages import Result
from sealsvc.protocol.rings import Attach, Register, Registered
from sealsvc.protocol.seals import (
    Grant,
    HolderSpec,
    IssueClaim,
    SealInfo,
)
from sealsvc.rings.registrations import Rings
from sealsvc.runtime import closing
from sealsvc.runtime.limits import RateLimit
from sealsvc.runtime.users import Received, User, Users
from sealsvc.service.foreign import ForeignNames
from sealsvc.service.idempotency import ReplyCache, digest_of
from sealsvc.service.metrics import Metrics
from sealsvc.service.router import Answers, Handlers
from sealsvc.service.tickets import Tickets

_CLOSED_WITHIN = 1.0  # seconds


class Granting:
    """Grants seals to the requester, to another process, in a ring, or to whoever redeems a claim.

    `granted` is called with each seal of a Grant or Register before its holder learns of it.
    `rings` is None where there is no keeper."""

    def __init__(
        self,
        grants: Grants,
        paths: Paths,
        foreign: ForeignNames,
        replies: ReplyCache,
        users: Users,
        holders: Holders,
        rings: Rings | None,
        metrics: Metrics,
        granted: Callable[[Seal], Awaitable[None]],
    ) -> None:
        self.grants, self.machine, self.table = grants, grants.machine, grants.machine.table
        self.policy, self.paths, self.foreign = grants.policy, paths, foreign
        self.replies, self.users, self.holders, self.rings = replies, users, holders, rings
        self.metrics, self.tickets, self._granted = metrics, Tickets(), granted
        section = self.policy.section
        self.rate = RateLimit(section.grants_per_second, section.grants_burst)

    def handlers(self) -> Handlers:
        return {
            Grant: self._grant,
            Register: self._register,
            Redeem: self._redeem,
            Attach: self._attach,
        }

    def answers(self) -> Answers:
        return {IssueClaim: self._issue_claim}

    async def _attach(self, connection: Connection, request: Attach, _: Received) -> Reply:
        return self._rings().attach(connection, request)

    async def _issue_claim(self, connection: Connection, request: IssueClaim) -> Result:
        peer = connection.peer
        self.policy.authorise_claim(peer, request)
        await self.paths.identify(request.path or "", request.only.below or ["/"])
        await self.foreign.refuse(connection.process, request, request.path)
        asker = self.policy.asker(peer.uid, request.principal)
        return self.tickets.issue(peer, asker, request)

    async def _grant(self, connection: Connection, request: Grant, fds: Received) -> Reply:
        with self.metrics.timed("grant"):
            return await self._once(connection, request, fds)

    async def _once(self, connection: Connection, request: Grant, fds: Received) -> Reply:
        if not request.key:
            return await self._new_grant(connection, request, fds)
        made: list[int] = []
        # In a thread: reading the fdinfo of a descriptor that was sent may block.
        digest = await self.users.look(connection.user, digest_of, request, fds.numbers)

        async def act() -> Result:
            reply = await self._new_grant(connection, request, fds, digest=digest)
            made.extend(reply.fds)
            return reply.result

        asker = self.policy.asker(connection.peer.uid, request.principal)
        result, again = await self.replies.run(asker, request, digest, act)
        if not again:
            return Reply(result, made)
        # The service's copy of the first answer's descriptor may not be closed yet; hand_over_again
        # would take its description for the holder's.
        await closing.closed(("user", connection.peer.uid), _CLOSED_WITHIN)
        return await self._before(request, result)

    async def _before(self, request: Grant, result: Result) -> Reply:
        """Answer a repeated request with the seal's present state. Its descriptor is sent again if
        the first one was lost, which is so when no open file description has the seal's mark."""
        assert isinstance(result, SealInfo)
        seal = self.table.get(result.id)
        if seal is None:
            return Reply(self.machine.table.ended(result.id) or result)
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
        self,
        connection: Connection,
        request: Grant,
        asker: Requester,
        passed: PassedDescriptor | None,
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
        make: Callable[[Requester, PassedDescriptor | None], Awaitable[tuple[Seal, int]]]
        | None = None,
        digest: bytes = b"",
    ) -> Reply:
        user = connection.user
        self._authorise(connection.peer, request, len(fds))
        self.rate.take(self.policy.asker(connection.peer.uid, request.principal))
        process = await self._holder(connection, request, fds)
        passed = None
        try:
            await self.foreign.refuse(connection.process, request, request.path, request.holder.pid)
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
        asker = Requester(connection.peer, process, connection, digest)
        make = make or functools.partial(self._make, connection, request)
        seal, fd = await make(asker, passed)
        await self._granted(seal)
        if request.path is not None and request.holder.pid is None:
            return Reply(seal.info(), [fd])
        user.close_later([fd])
        return Reply(seal.info())

    async def _passed(
        self, user: User, process: Process, request: Grant, fds: Received
    ) -> PassedDescriptor | None:
        """The file's descriptor: the one that was sent, or a copy of the holder's, by its number in
        the holder. None when the file is named by path. Raises Refusal."""
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

    def _authorise(self, peer: Peer, request: Grant, fds: int) -> None:
        try:
            self.policy.authorise_grant(peer, request, fds)
        except Refusal as refusal:
            self.grants.refused(refusal, request, peer)
            raise

    async def _redeem(self, connection: Connection, request: Redeem, _: Received) -> Reply:
        """Make the grant of a claim, to the process that shows it."""
        with self.tickets.redeem(request.claim, connection.peer) as issued:
            asker = Requester(issued.peer, connection.process.share(), connection)
            with self.metrics.timed("grant"):
                seal, fd = await self.grants.grant(issued.grant, asker, None)
                self.holders.watch(seal)
                await self._granted(seal)
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
        """The process of a descriptor that was sent as a pidfd, but may be anything. Takes
        ownership of it. Raises Refusal."""
        try:
            holder = await self.users.look(connection.user, processes.holder_of, pidfd)
            if holder.uid != connection.peer.uid and not self.policy.is_operator(connection.peer):
                raise Refusal("denied", "the holder belongs to another user")
        except BaseException:
            connection.user.close_later([pidfd])
            raise
        return Process(holder, pidfd)


def _descriptor_of(process: Process, number: int) -> int:
    """A copy of the process's descriptor. Call it in a thread: pidfd_getfd(2) waits while the
    process is in execve (kernel/pid.c __pidfd_fget). Raises Refusal `bad-request`."""
    try:
        return native.pidfd_getfd(process.pidfd, number)
    except OSError as error:
        raise Refusal(
            "bad-request",
            f"descriptor {number} of process {process.holder.pid}: {error.strerror}",
        ) from None
