"""Tables of handlers for the router, one function for each capability: integrity, PI channels,
copies, relocation, exports, simulation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, get_args

from sealsvc.control.connection import Connection, Reply
from sealsvc.copies.jobs import CopyJobs
from sealsvc.copies.relocation.job import Relocations
from sealsvc.core.errors import Refusal
from sealsvc.exports.stopping import stop_export
from sealsvc.integrity.channels import PiChannels
from sealsvc.integrity.service import Integrity
from sealsvc.lifecycle.policy import Policy
from sealsvc.protocol import integrity as pi
from sealsvc.protocol import pi_device
from sealsvc.protocol.copies import CopyTrust, StartCopy
from sealsvc.protocol.exports import StopExport
from sealsvc.protocol.messages import Result
from sealsvc.protocol.relocation import Quiesce, Relocate
from sealsvc.protocol.system import Simulate, Simulated
from sealsvc.registry import Registry
from sealsvc.runtime.users import Received
from sealsvc.service.router import Answers, Handlers
from sealsvc.service.visible import Visible

_CHANNEL = get_args(pi_device.AnyRequest)
_TAGS = [kind for kind in get_args(pi.AnyRequest) if kind not in (*_CHANNEL, pi.PiQuery)]


def integrity_answers(integrity: Integrity) -> tuple[Answers, Handlers]:
    """Requests about tags; PiQuery may come with a descriptor."""

    async def answer(connection: Connection, request: Any) -> Result:
        return await integrity.requests.answer(connection.peer, request)

    async def query(connection: Connection, request: pi.PiQuery, fds: Received) -> Reply:
        return Reply(await integrity.requests.answer(connection.peer, request, fds))

    return dict.fromkeys(_TAGS, answer), {pi.PiQuery: query}


def channel_handlers(channels: PiChannels) -> Handlers:
    """Requests about PI channels to devices."""
    return dict.fromkeys(_CHANNEL, channels.answer)


def copy_answers(copies: CopyJobs, registry: Registry) -> tuple[Answers, Handlers]:
    """Copies between paths, or between descriptors that were sent; the trust in strategies."""

    async def start(connection: Connection, request: StartCopy) -> Result:
        return await copies.start(connection.peer, connection.user, request, [])

    async def start_sent(connection: Connection, request: StartCopy, fds: Received) -> Reply:
        """Start a copy between two files whose descriptors were sent. A key is refused, because a
        repeated request could not be recognised: the descriptors of the first are closed by
        then."""
        if request.key:
            raise Refusal("bad-request", "a copy between descriptors takes no key")
        taken = [fds.pop() for _ in range(len(fds))]
        job = await copies.start(connection.peer, connection.user, request, taken[::-1])
        registry.asked(connection.peer, "start-copy", None, job=job.id, path=job.path)
        return Reply(job)

    async def trust(_: Connection, __: CopyTrust) -> Result:
        return await copies.trust()

    return {StartCopy: start, CopyTrust: trust}, {StartCopy: start_sent}


def relocation_answers(relocations: Relocations, visible: Visible) -> Answers:
    """Relocations, and the answers of holders to them (Quiesce)."""

    async def relocate(connection: Connection, request: Relocate) -> Result:
        return await relocations.start(connection.peer, request)

    async def quiesce(connection: Connection, request: Quiesce) -> Result:
        seal = visible.seal_at(connection.peer, request.seal, request.seqid)
        return await relocations.quiesce(seal)

    return {Relocate: relocate, Quiesce: quiesce}


def export_answers(policy: Policy, *, simulated: bool) -> Answers:
    """The end of exports, for operators."""

    async def stop(connection: Connection, request: StopExport) -> Result:
        policy.operators_only(connection.peer, "stop exports")
        if simulated:
            raise Refusal("no-such-export", "a simulated service has no exports")
        return await stop_export(request)

    return {StopExport: stop}


def simulation_answers(
    policy: Policy, simulate: Callable[[Simulate], Awaitable[dict[str, Any]]]
) -> Answers:
    """What a simulated system is told to do, by operators."""

    async def answer(connection: Connection, request: Simulate) -> Result:
        policy.operators_only(connection.peer, "simulate")
        return Simulated(result=await simulate(request))

    return {Simulate: answer}
