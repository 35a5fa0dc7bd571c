"""Clients with a ring: attaching, registering files, and the life of registrations.

To the service a registration is a seal like any other: journalled, watched, recalled, fenced,
recovered after a restart. The seals in it are granted and returned natively (native/ring), without
the service, which tracks one only when something happens to it (tracking.py). Under fanotify,
conflicts with a registered range in which nothing is sealed pass; under any other enforcer they
recall the registration, as an NFSv4 delegation is recalled.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import msgspec

from sealsvc.control.connection import Connection, Reply
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Kind, RingPlace, State
from sealsvc.core.native_headers import STATES
from sealsvc.core.states import Step
from sealsvc.enforce.base import Verdict, Watchable, watchable
from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.enforce.overlay_mounts import RISK as OVERLAY_RISK
from sealsvc.lifecycle.grants import Grants, PassedDescriptor, Requester
from sealsvc.lifecycle.policy import Policy, RingShare
from sealsvc.lifecycle.seals import Seal, SealObserver
from sealsvc.lifecycle.state_machine import may
from sealsvc.linux.native import lib
from sealsvc.linux.processes import Peer, Process
from sealsvc.protocol.rings import Attach, Attached, Register
from sealsvc.protocol.seals import Grant, Recall, RecallAny
from sealsvc.rings.keeper import RingKeeper, RingRow, bytes_of, moment

log = logging.getLogger(__name__)

# Seconds for which an unused ring is kept so that its client can connect again: while the client's
# process lives or is not known (after a restart of the service), and once it has ended.
_LINGER, _LINGER_OF_DEAD = 60.0, 2.0
_USED = (State.GRANTED, State.ACTIVE)
_NO_SLOT = 2**32 - 1


@dataclass(eq=False)
class RingClient:
    """A ring, and the connection that is attached to it. `files` are its registrations by index,
    `mirrored` counts seals that were granted over the control socket and have a slot too;
    `idle_since` is in seconds of CLOCK_MONOTONIC."""

    keeper: RingKeeper
    row: RingRow
    connection: Connection | None = None
    process: Process | None = None  # of the last connection that was attached
    files: dict[int, Seal] = field(default_factory=dict)
    mirrored: int = 0
    idle_since: float = field(default_factory=time.monotonic)

    @property
    def number(self) -> int:
        return self.row.ring

    @property
    def in_use(self) -> bool:
        """Whether a connection is attached, or the ring has registrations or mirrored seals."""
        attached = self.connection is not None and self.connection.open
        return attached or bool(self.files) or self.mirrored > 0

    def attach(self, connection: Connection) -> None:
        self.forget_process()
        self.connection, self.process = connection, connection.process.share()

    def forget_process(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None

    @property
    def patience(self) -> float:
        """Seconds for which the ring is kept without use."""
        gone = self.process is not None and self.process.ended
        return _LINGER_OF_DEAD if gone else _LINGER

    def tell(self, seal: Seal, message: Recall | RecallAny) -> bool:
        """Put a recall on the event ring. False when the keeper does not take it."""
        if isinstance(message, RecallAny):
            return self.keeper.tell(
                self.number, kind=lib.SEAL_EVENT_ANY, slot=_NO_SLOT, length=message.count
            )
        place = seal.place
        assert place is not None
        kind = lib.SEAL_EVENT_LOST if message.changed else lib.SEAL_EVENT_DEADLINE
        return self.keeper.tell(
            self.number,
            kind=lib.SEAL_EVENT_FILE if place.is_registration else kind,
            slot=_NO_SLOT if place.is_registration else place.slot,
            file=max(place.file, 0),
            word=STATES[seal.state] | seal.seqid << 32,
            cookie=place.cookie,
            offset=message.wanted.offset,
            length=message.wanted.length,
            deadline=moment(seal.deadline),
            id=seal.token,
        )


class _Registration(SealObserver):
    """Keeps the keeper's registration like the seal that it is."""

    def __init__(self, rings: Rings, client: RingClient) -> None:
        self._rings, self._client = rings, client

    def changed(self, seal: Seal) -> None:
        self._rings.publish(seal)

    def ended(self, seal: Seal) -> None:
        assert seal.place is not None
        self._client.files.pop(seal.place.file, None)
        self._client.idle_since = time.monotonic()

    def map_may_change(self, seal: Seal) -> bool:
        assert seal.place is not None
        return self._rings.keeper.is_invalidated(seal.place.ring, seal.place.file)


class _Mirrored(SealObserver):
    """Keeps a slot like the seal, which was granted over the control socket."""

    def __init__(self, keeper: RingKeeper, client: RingClient) -> None:
        self._keeper, self._client = keeper, client
        client.mirrored += 1

    def changed(self, seal: Seal) -> None:
        self._keeper.set_slot(seal, lib.SEAL_POLICY_WAIT)
        if not seal.live:
            self._client.mirrored -= 1
            self._client.idle_since = time.monotonic()


class Rings:
    """All rings. `watch_holder(seal)` starts watching for the end of the seal's holder."""

    def __init__(
        self,
        keeper: RingKeeper,
        grants: Grants,
        policy: Policy,
        watch_holder: Callable[[Seal], None],
    ) -> None:
        self.keeper, self.grants, self.policy = keeper, grants, policy
        self.machine, self.table, self.watch_holder = (
            grants.machine,
            grants.machine.table,
            watch_holder,
        )
        self.clients: dict[int, RingClient] = {}

    # Attaching

    def attach(self, connection: Connection, request: Attach) -> Reply:
        """Make a ring, or find an existing one by number and secret, and attach the connection to
        it. Raises Refusal `bad-request`, `limit-reached` or `denied`."""
        if request.ring is None:
            client = self._create(connection, request)
        else:
            client = self._find(connection, request)
        with ExitStack() as undo:
            undo.callback(self._drop_if_unused, client)
            try:
                fds = self.keeper.descriptors(client.number)
            except KeeperError as error:
                raise Refusal("limit-reached", f"the ring cannot be told: {error}") from None
            undo.pop_all()
        client.attach(connection)
        files = {number: seal.id for number, seal in client.files.items()}
        return Reply(
            Attached(ring=client.number, secret=f"{client.row.secret:016x}", files=files), fds
        )

    def _create(self, connection: Connection, request: Attach) -> RingClient:
        if any(client.connection is connection for client in self.clients.values()):
            raise Refusal("bad-request", "this connection has a ring")
        size = bytes_of(request)
        try:
            self._admit(connection.peer, request.slots, size)
        except Refusal:
            # Rings whose client has ended make room.
            if not self._drop_of_dead():
                raise
            self._admit(connection.peer, request.slots, size)
        secret, uid = secrets.randbits(64), connection.peer.uid
        try:
            number = self.keeper.create(request, uid, secret)
        except KeeperError as error:
            raise Refusal("bad-request", f"no such ring can be made: {error.strerror}") from None
        row = RingRow(number, uid, request.slots, 0, secret, 0, 0, 0, 0, size)
        client = self.clients[number] = RingClient(self.keeper, row)
        return client

    def _admit(self, peer: Peer, slots: int, size: int) -> None:
        rows = [(client.row, client.in_use) for client in self.clients.values()]
        shares = [RingShare(row.owner, row.slots, row.bytes, used) for row, used in rows]
        self.policy.admit_ring(peer, slots, size, shares, self.table)

    def _drop_of_dead(self) -> int:
        """Drop unused rings whose client's process has ended. Returns how many there were."""
        dead = [c for c in self.clients.values() if not c.in_use and c.patience < _LINGER]
        for client in dead:
            self._drop_if_unused(client)
        return len(dead)

    def _find(self, connection: Connection, request: Attach) -> RingClient:
        client = self.clients.get(request.ring or 0)
        secret = f"{client.row.secret:016x}" if client else ""
        known = secrets.compare_digest(secret, request.secret or "")
        if client is None or not known or client.row.owner != connection.peer.uid:
            raise Refusal("denied", f"there is no ring {request.ring} for who asks")
        return client

    def of(self, connection: Connection) -> RingClient | None:
        """The ring that the connection is attached to."""
        found = (c for c in self.clients.values() if c.connection is connection)
        return next(found, None)

    # Registering

    async def register(
        self,
        connection: Connection,
        request: Register,
        asker: Requester,
        passed: PassedDescriptor | None,
    ) -> tuple[Seal, int]:
        """Register a file. Returns the registration and the descriptor of its holder, which the
        caller closes. Takes ownership of what Grants.grant does, and raises the same."""
        client = self.clients.get(request.ring)
        if client is None or client.connection is not connection:
            asker.process.close()
            if passed is not None:
                connection.user.close_later([passed.fd])
            raise Refusal("denied", f"ring {request.ring} is not attached to this connection")
        fields = msgspec.structs.asdict(request)
        del fields["ring"]
        asker = Requester(asker.peer, asker.process, client)

        def before(seal: Seal, undo: ExitStack) -> None:
            self._place(client, seal, undo)

        seal, fd = await self.grants.grant(Grant(**fields), asker, passed, before)
        self.watch_holder(seal)
        self._observe(client, seal)
        self.publish(seal)
        return seal, fd

    def _place(self, client: RingClient, seal: Seal, undo: ExitStack) -> None:
        """Register the seal with the keeper. Until the grant is complete, its guard still holds all
        conflicts."""
        front = self._front(seal)
        try:
            file = self.keeper.register(client.number, seal, watched=front is not None)
        except KeeperError as error:
            raise Refusal("limit-reached", f"it cannot be registered: {error.strerror}") from None
        undo.callback(self.keeper.unregister, client.number, file, State.REFUSED)
        seal.place = RingPlace(client.number, file, watched=front is not None)
        if front is not None:
            front.watch(seal.place.key)
        self.keeper.revalidate(seal)
        client.files[file] = seal
        undo.callback(client.files.pop, file)

    def _front(self, seal: Seal) -> Watchable | None:
        """The hold that leaves the judging of conflicts to the ring; None: the registration holds
        its whole range. An enforcer behind such a hold (bpf) does not see truncations, so the
        policy must accept the risk `overlay-truncate`."""
        if seal.request.kind is not Kind.SHARED:
            return None
        if len(seal.enforcers) > 1:
            if not self.policy.accepts(OVERLAY_RISK):
                return None
            seal.accepted_risks = sorted({*seal.accepted_risks, OVERLAY_RISK})
        return watchable(seal.hold)

    def _observe(self, client: RingClient, seal: Seal) -> None:
        seal.client = client
        seal.observe(_Registration(self, client))

    def publish(self, seal: Seal) -> None:
        """Apply the registration's state to the seals in it."""
        place = seal.place
        assert place is not None
        if not seal.live:
            # The seals must end first: the registration's own guard is released after this.
            self._end_tracked(seal)
            self.keeper.unregister(place.ring, place.file, seal.state)
        elif seal.state in _USED:
            self.keeper.open(place.ring, place.file)
        else:
            self.keeper.close(place.ring, place.file, seal.wanted or seal.effective)

    def _end_tracked(self, parent: Seal) -> None:
        """End the tracked seals in a registration that has ended. That nothing of its whole range
        is mapped was proven for it, so no further proof is needed."""
        for seal in self.table.of_file(parent.file):
            if seal.place is None or seal.place.parent != parent.token:
                continue
            for step in (Step.RETURN, Step.PROVEN):
                if seal.live and may(seal, step):
                    self.machine.step(seal, step, parent.reason)

    def registration(self, ring: int, file: int) -> Seal | None:
        """The registration with this index in the ring."""
        client = self.clients.get(ring)
        return client.files.get(file) if client else None

    # Slots of seals that are granted over the control socket

    def mirror(self, connection: Connection) -> Callable[[Seal, ExitStack], None]:
        """A function for `before` of Grants.grant: it gives the seal a slot if the connection has a
        ring with a free one."""
        client = self.of(connection)

        def before(seal: Seal, undo: ExitStack) -> None:
            if client is not None:
                with suppress(KeeperError):  # the table is full
                    slot = self.keeper.take_slot(client.number, seal)
                    seal.place = RingPlace(client.number, slot=slot)
                    seal.observe(_Mirrored(self.keeper, client))
                    undo.callback(self._withdraw, seal)

        return before

    def _withdraw(self, seal: Seal) -> None:
        seal.state = State.REFUSED
        seal.tell_changed()

    # Recovery and periodic work

    def resume(self, seals: list[Seal]) -> list[Seal]:
        """After a restart: take over the keeper's rings with the registrations among `seals`.
        Registrations that the previous service did not journal are dropped. Returns the tracked
        seals in registrations, which tracking.py takes over. Raises KeeperError."""
        there = self.keeper.list()
        for row in there.rings:
            self.clients[row.ring] = RingClient(self.keeper, row)
        known = {seal.token for seal in seals}
        for found in there.files:
            if found.id not in known:
                self.keeper.unregister(found.ring, found.file, State.RETURNED)
        left = []
        for seal in seals:
            client = self.clients.get(seal.place.ring) if seal.place else None
            if client is None or seal.place is None:
                continue
            if seal.place.parent:
                left.append(seal)
            elif seal.place.is_registration:
                client.files[seal.place.file] = seal
                self._observe(client, seal)
                # The previous service may have ended while it read the map behind an arming guard.
                seal.hold.change(seal.verdict if seal.state in _USED else Verdict.WAIT)
            else:
                seal.observe(_Mirrored(self.keeper, client))
        return left

    def tick(self) -> None:
        """Publish how many grants, returns and recalls were made natively, and drop rings that have
        been unused for too long. Called periodically."""
        if not self.clients:
            return
        try:
            rows = self.keeper.list().rings
        except KeeperError as error:
            log.warning("what rings did is told later: %s", error)
            return
        for row in rows:
            client = self.clients.get(row.ring)
            if client is None:
                continue
            before, client.row = client.row, row
            if (row.grants, row.returns, row.recalls) != (
                before.grants, before.returns, before.recalls
            ):  # fmt: skip
                self.machine.events.publish(
                    "ring",
                    ring=row.ring,
                    grants=row.grants - before.grants,
                    returns=row.returns - before.returns,
                    recalls=row.recalls - before.recalls,
                )
            if client.in_use:
                client.idle_since = time.monotonic()
            elif time.monotonic() - client.idle_since > client.patience:
                self._drop_if_unused(client)

    def metrics(self) -> tuple[dict[str, dict[str, int]], dict[str, float]]:
        """Counters by name and label, and gauges by name. Raises KeeperError."""
        there = self.keeper.list()
        told = there.counters
        attached = [c for c in self.clients.values() if c.connection and c.connection.open]
        return (
            {
                "ring_commands": there.commands,
                "ring_troubles": {name: told[name] for name in ("broken", "dropped")},
                "ring_forwarded": {"": told["forwarded"]},
                "ring_bells": {name: told[name] for name in ("rung", "spared")},
            },
            {
                "rings": float(len(there.rings)),
                "attached": float(len(attached)),
                "registrations": float(len(there.files)),
                "slots": float(sum(row.slots for row in there.rings)),
                "slots_used": float(sum(row.used for row in there.rings)),
            },
        )

    def _drop_if_unused(self, client: RingClient) -> None:
        if not client.in_use:
            del self.clients[client.number]
            client.forget_process()
            self.keeper.drop(client.number)
