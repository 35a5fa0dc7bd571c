"""Authorization and limits. Pure: each check gets a request and the facts, and raises a Refusal or
returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from sealsvc.core import states
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, Fence, Gap, Holder, IoMode, Kind
from sealsvc.core.paths import lies_below
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.linux.host import Target
from sealsvc.linux.processes import Peer
from sealsvc.protocol.seals import Conditions, Grant, Terms
from sealsvc.runtime.config import PolicySection
from sealsvc.runtime.limits import Asked, leaves_as_many

_MAX_RINGS = 4096  # SEAL_RINGS_MAX of native/include/sealsvc/rings.h


@dataclass(frozen=True, slots=True)
class RingShare:
    """What one ring of user `uid` takes of the shared limits: slots, and bytes of memory. It counts
    while it is not `used`, too: its client may come back (Rings.tick)."""

    uid: int
    slots: int
    bytes: int
    used: bool = True


class Policy:
    """The checks of the configuration's section `policy`. Those that are named refuse_*,
    authorise_*, admit* and accept raise Refusal."""

    def __init__(self, section: PolicySection) -> None:
        self.section = section

    @property
    def roots(self) -> list[str]:
        return self.section.roots

    def operators_only(self, peer: Peer, deed: str) -> None:
        """Raises Refusal `denied` unless the peer is an operator. `deed` completes "may not ..."
        in its message."""
        if not self.is_operator(peer):
            raise Refusal("denied", f"uid {peer.uid} may not {deed}")

    def is_operator(self, peer: Peer) -> bool:
        return peer.uid in self.section.operators

    def asker(self, uid: int, principal: str) -> Asked:
        """To whose share a request is counted. Operators, such as the REST API, ask on behalf of
        principals; a principal that any other user names is ignored."""
        return uid, principal if uid in self.section.operators else ""

    def may_see(self, peer: Peer, seal: Seal) -> bool:
        """Whether the peer may see the seal: operators, and the user that holds it."""
        return self.is_operator(peer) or seal.process.holder.uid == peer.uid

    def authorise_grant(self, peer: Peer, request: Grant, descriptors: int) -> None:
        """Check a grant before its file is opened. A path is opened with the service's rights, so
        only operators may name one; anybody may pass a descriptor, which proves that its sender
        could open the file. `descriptors` is how many came with the request. Raises Refusal
        `bad-request` or `denied`."""
        by_descriptor = descriptors - int(request.holder.pidfd) > 0 or request.holder.fd is not None
        if (request.path is None) == (not by_descriptor):
            raise Refusal("bad-request", "name the file by `path` or by one descriptor, not both")
        if request.path is not None and not self.is_operator(peer):
            raise Refusal(
                "denied",
                f"uid {peer.uid} may not name files by path: open the file and pass its descriptor",
                {"uid": peer.uid},
            )
        if request.holder.pid is not None and not self.is_operator(peer):
            raise Refusal(
                "denied", f"uid {peer.uid} may not name a holder by pid", {"uid": peer.uid}
            )
        self._refuse_long_grace(request)
        reader = request.iomode is IoMode.READ and request.path is None
        if request.kind is Kind.EXCLUSIVE and reader and not self.is_operator(peer):
            raise Refusal(
                "denied", "an exclusive seal by a read-only descriptor would shut writers out"
            )

    def _refuse_long_grace(self, request: Terms) -> None:
        if request.grace > self.section.max_grace:
            raise Refusal(
                "denied",
                f"grace {request.grace:g} s is above policy.max_grace {self.section.max_grace:g} s",
                {"max_grace": self.section.max_grace},
            )

    def terms_of_reader(self, peer: Peer, request: Grant) -> Grant:
        """The terms of a grant on a descriptor that cannot write. A user who may only read a file
        must not keep its owner from changing it: conflicts with such a seal wait, its grace is
        limited, and it is fenced with `kill`. Raises Refusal `denied` for other terms."""
        if self.is_operator(peer):
            return request
        if request.conflict is not Conflict.WAIT:
            raise Refusal(
                "denied",
                "a descriptor that cannot write gets seals with conflict=wait only: open the file"
                " for writing to refuse what others do to it",
                {"conflict": request.conflict},
            )
        most = self.section.max_reader_grace
        if request.grace > most:
            raise Refusal(
                "denied",
                f"grace {request.grace:g} s is above policy.max_reader_grace {most:g} s, the most"
                " for a descriptor that cannot write",
                {"max_reader_grace": most},
            )
        return msgspec.structs.replace(request, fence=Fence.KILL)

    def authorise_claim(self, peer: Peer, request: Terms) -> None:
        """Check a claim before it is issued. Raises Refusal `bad-request` or `denied`."""
        if request.path is None:
            raise Refusal("bad-request", "a claim names its file by `path`")
        if not self.is_operator(peer):
            raise Refusal("denied", f"uid {peer.uid} may not issue claims", {"uid": peer.uid})
        self._refuse_long_grace(request)

    def refuse_outside(self, only: Conditions, path: str) -> None:
        """Raises Refusal `no-such-file` for a path outside the directories of `only`: the requester
        must not learn what exists there."""
        if only.below is not None and not lies_below(path, only.below):
            raise Refusal("no-such-file", "there is no such file", {})

    def refuse_other_user(self, only: Conditions, holder: Holder) -> None:
        """Raises Refusal `no-such-holder` for a process of a user that `only` does not allow."""
        if only.uids is not None and holder.uid not in only.uids:
            raise Refusal(
                "no-such-holder", f"process {holder.pid} does not exist", {"pid": holder.pid}
            )

    def admit(
        self, request: Grant, wanted: ByteRange, holder: Holder, target: Target, table: SealTable
    ) -> None:
        """Check a new seal of the range `wanted` against the limits and the seals in `table`.
        Raises Refusal `limit-reached`, `seal-conflict` or `try-later`."""
        held = table.of_file(target.file)
        self._refuse_above_limits(wanted, holder, target, table, len(held))
        pinned = [seal for seal in held if "pin" in seal.enforcers]
        if pinned:
            raise Refusal(
                "seal-conflict",
                f"seal {pinned[0].id} pins the file: no other can be made on it (docs/pin.md)",
                {"seals": [seal.id for seal in pinned]},
                retry_after=1.0,
            )
        settling = [seal for seal in held if seal.state in states.SETTLING]
        if settling:
            waits = [i.deadline_in for i in (s.info() for s in settling) if i.deadline_in]
            raise Refusal(
                "try-later",
                "the file's seals are being recalled",
                {"seals": [seal.id for seal in settling]},
                retry_after=max(waits, default=1.0),
            )
        blocking = [seal for seal in held if _excludes(seal, request, holder.pid)]
        if blocking:
            raise Refusal(
                "seal-conflict",
                f"seal {blocking[0].id} of process {blocking[0].process.holder.pid} is"
                f" {blocking[0].request.kind}; the request is for {request.kind} {wanted}",
                {"seals": [seal.id for seal in blocking]},
                retry_after=1.0,
            )

    def _refuse_above_limits(
        self, wanted: ByteRange, holder: Holder, target: Target, table: SealTable, held: int
    ) -> None:
        section, counts = self.section, table.counts
        for name, present in (
            ("max_seals", len(table)),
            ("max_seals_per_file", held),
            ("max_seals_per_holder", counts.by_holder[holder.pid]),
            ("max_seals_per_filesystem", counts.by_filesystem[target.file.device]),
        ):
            limit = getattr(section, name)
            if present >= limit:
                raise Refusal(
                    "limit-reached", f"policy.{name} is {limit}", {"limit": name}, retry_after=1.0
                )
        mine, uncounted = counts.by_user[holder.uid], holder.uid in section.operators
        if not (uncounted or leaves_as_many(mine, len(table), section.max_seals)):
            raise Refusal(
                "limit-reached",
                f"user {holder.uid} has {mine} seals, and as many as are left for all others",
                {"limit": "max_seals"},
                retry_after=1.0,
            )
        quota = section.max_bytes_per_user
        if quota and counts.bytes_by_user[holder.uid] + wanted.length > quota:
            raise Refusal(
                "limit-reached",
                f"user {holder.uid} has {counts.bytes_by_user[holder.uid]} bytes sealed;"
                f" policy.max_bytes_per_user is {quota}",
                {"limit": "max_bytes_per_user"},
                retry_after=1.0,
            )

    def accepts(self, risk: str) -> bool:
        """Whether the policy accepts the risk, by name or by "all"."""
        return bool({"all", risk} & set(self.section.accept_risks))

    def refuse_endless_wait(self, request: Grant, enforcers: list[str]) -> None:
        """Raises Refusal `denied` for a pin with fence `none`. Unlike other enforcers, a pin cannot
        start to refuse when a recall's deadline passes: a task that waits on a pin, and every task
        that then reads or writes the file, cannot be killed and continues only when the seal
        ends."""
        if "pin" in enforcers and request.fence is Fence.NONE:
            raise Refusal(
                "denied",
                "this seal would be kept by a pin (docs/pin.md), and with fence none whoever waits"
                " on it might wait for ever: ask for fence signal or kill, or take pin out of"
                " enforcers.use",
                {"fence": request.fence, "enforcers": enforcers},
            )

    def admit_ring(
        self, peer: Peer, slots: int, size: int, rings: Iterable[RingShare], table: SealTable
    ) -> None:
        """Check one more ring of `peer`, with `slots` slots and `size` bytes, against the limits
        and the existing `rings`. A user that is not an operator may have at most as many rings and
        slots as remain for all others. Raises Refusal `limit-reached`."""
        section, there = self.section, list(rings)
        mine = [ring for ring in there if ring.uid == peer.uid]
        taken = sum(ring.slots for ring in there)
        left = section.max_seals - len(table) - taken - slots
        if left < 0:
            why = f"{slots} slots are asked for, {taken} are in rings{_unused(there)}, and"
            raise _ring_limit("max_seals", section.max_seals, f"{why} {len(table)} are seals")
        if slots > section.max_seals_per_holder:
            raise _ring_limit(
                "max_seals_per_holder", section.max_seals_per_holder, f"{slots} are asked for"
            )
        rings_left = _MAX_RINGS - len(there) - 1
        if rings_left < 0:
            raise _ring_limit("rings", _MAX_RINGS, "there are as many")
        if self.is_operator(peer):
            return
        if len(mine) + 1 > rings_left:
            raise _ring_limit("rings", rings_left, f"user {peer.uid} has {len(mine)}")
        if sum(ring.slots for ring in mine) + slots > left:
            raise _ring_limit(
                "slots",
                left,
                f"user {peer.uid} would have more than are left for others{_unused(mine)}",
            )
        taken = sum(ring.bytes for ring in mine)
        if taken + size > section.max_ring_bytes_per_user:
            raise _ring_limit(
                "max_ring_bytes_per_user",
                section.max_ring_bytes_per_user,
                f"the rings of user {peer.uid} have {taken} bytes, and this one takes {size}",
            )

    def accept(self, gaps: Iterable[Gap]) -> list[str]:
        """The risks of a seal with these gaps. Raises Refusal `risk-not-accepted` unless the policy
        accepts each by name, or "all"."""
        risks = [gap.risk for gap in gaps]
        accepted = self.section.accept_risks
        missing = [] if "all" in accepted else [r for r in risks if r not in accepted]
        if missing:
            open_gaps = [gap for gap in gaps if gap.risk in missing]
            why = "; ".join(f"{gap.risk}: {gap.why}" for gap in open_gaps)
            both = any(Kind.EXCLUSIVE in gap.kinds for gap in open_gaps)
            instead = "Accept" if both else "Ask for kind exclusive, or accept"
            raise Refusal(
                "risk-not-accepted",
                f"not covered here: {why}. {instead} by name in policy.accept_risks",
                {"risks": missing},
            )
        return risks


def _unused(rings: list[RingShare]) -> str:
    slots = sum(ring.slots for ring in rings if not ring.used)
    return f" ({slots} of rings whose client has left, which are dropped soon)" if slots else ""


def _ring_limit(name: str, limit: int, why: str) -> Refusal:
    return Refusal(
        "limit-reached",
        f"policy.{name} is {limit}: {why}" if "max_" in name else f"at most {limit} {name}: {why}",
        {"limit": name},
        retry_after=1.0,
    )


def longest_recall(section: PolicySection, seal: Seal) -> float:
    """Seconds from the start of a recall up to which progress may postpone its deadline. Shorter
    for the seals of Policy.terms_of_reader."""
    request = seal.request
    reader = request.iomode is IoMode.READ and request.fence is Fence.KILL
    if reader and seal.process.holder.uid not in section.operators:
        return min(section.max_recall, section.max_reader_grace)
    return section.max_recall


def _excludes(seal: Seal, request: Grant, pid: int) -> bool:
    """Whether the seal and the request exclude each other: an exclusive seal keeps every other
    holder out of the file, whatever the ranges."""
    if Kind.EXCLUSIVE not in (seal.request.kind, request.kind):
        return False
    return seal.process.holder.pid != pid or seal.request.kind is not request.kind
