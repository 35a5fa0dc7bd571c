"""Recalls: from a conflict, or an operator's wish, to the notice that a holder gets.

What happens at the deadline is fence.py's; how a seal is given back, returns.py's.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec

from sealsvc.core import rules
from sealsvc.core.display import printable
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, Kind, Operation, State
from sealsvc.core.states import Step, after
from sealsvc.enforce.base import Outcome, Report
from sealsvc.lifecycle.fence import Fencing
from sealsvc.lifecycle.policy import longest_recall
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.lifecycle.state_machine import Life, may
from sealsvc.protocol.seals import RecallAny
from sealsvc.runtime import clock, faults
from sealsvc.runtime.config import PolicySection

log = logging.getLogger(__name__)

_MOST_REPEATED = 256  # kinds of refused operations that are told apart between two ticks
_PRESSURE_PAUSE = 10.0  # seconds between two requests to the same effect
_PRESSURE_GRACE = 10.0
_CROWDED_PAUSE = 10.0  # seconds between two alarms about too many waiters


@dataclass(frozen=True, slots=True)
class Waiting:
    """An operation that waits, for which seals, and since when."""

    enforcer: str
    report: Report
    seals: list[str]
    path: str
    since: float


class Repeats:
    """Refused operations that are repeated: who calls again and again, as fast as refusals come,
    costs the service one event and a number. Cleared by `take`, and bounded in between."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], tuple[Report, int]] = {}

    def is_first(self, report: Report) -> bool:
        """Whether it is to be told at once."""
        operation = report.operation
        key: tuple[object, ...] = (report.tokens, operation.name, operation.pid, report.error)
        if len(self._seen) >= _MOST_REPEATED:
            key = ()  # a flood from many processes
        first, count = self._seen.get(key, (report, 0))
        self._seen[key] = (first, count + 1)
        return count == 0

    def take(self) -> list[tuple[Report, int]]:
        """The first of each kind, and how many came after it."""
        seen, self._seen = self._seen, {}
        return [(report, count - 1) for report, count in seen.values() if count > 1]


class Recaller:
    """`push_any(seal, message)` delivers to whoever receives the seal's recalls."""

    def __init__(
        self,
        life: Life,
        fencing: Fencing,
        policy: PolicySection,
        push_any: Callable[[Seal, RecallAny], bool],
    ) -> None:
        self.life, self.fencing, self.policy, self.push_any = life, fencing, policy, push_any
        self.table: SealTable = life.table
        self.waiting: dict[tuple[str, int], Waiting] = {}
        self.counters = {"conflicts": 0, "recalls": 0, "recalls_merged": 0}
        self._relieved_at = -_PRESSURE_PAUSE
        self._refused = Repeats()
        self._crowded_at = -_CROWDED_PAUSE

    # Conflicts

    def conflict(self, enforcer: str, report: Report) -> None:
        found = [self.table.of_token(token) for token in report.tokens]
        met = [seal for seal in found if seal is not None]
        key = (enforcer, report.waiter)
        if report.outcome is Outcome.ENDED:
            waited = self.waiting.pop(key, None)
            self.life.events.publish(
                "conflict-ended",
                waited.seals[0] if waited and waited.seals else None,
                operation=report.operation,
                result=report.error,
                waited=report.waited,
            )
            return
        self.counters["conflicts"] += 1
        if report.outcome is not Outcome.REFUSED or self._refused.is_first(report):
            self._publish_conflict(report, met)
        if report.outcome is Outcome.HELD:
            ids, path = [seal.id for seal in met], met[0].path if met else ""
            self.waiting[key] = Waiting(enforcer, report, ids, path, clock.now())
        fresh = [seal for seal in met if seal.state is not State.RECALLED]
        for seal in met:
            self._met(seal, report)
        if report.outcome is Outcome.HELD and fresh:
            _log_wait(report.operation, fresh)

    def _publish_conflict(self, report: Report, met: list[Seal], **more: int) -> None:
        if report.error == errno.EAGAIN:
            self._crowded(report, met)
        self.life.events.publish(
            "conflict",
            met[0].id if met else None,
            operation=report.operation,
            seals=[seal.id for seal in met],
            verdict=report.outcome,
            errno=report.error,
            **more,
        )

    def publish_repeated(self) -> None:
        """From time to time: one event for all the refusals of the same kind since the last."""
        for first, count in self._refused.take():
            detail = f"{first.operation.detail} ({count} more since)".lstrip()
            operation = msgspec.structs.replace(first.operation, detail=detail)
            report = replace(first, operation=operation)
            found = [self.table.of_token(token) for token in report.tokens]
            self._publish_conflict(report, [s for s in found if s is not None], repeated=count)

    def _crowded(self, report: Report, met: list[Seal]) -> None:
        """An operation was refused because too many wait already (docs/rules.md)."""
        if clock.now() < self._crowded_at + _CROWDED_PAUSE:
            return
        self._crowded_at = clock.now()
        where = met[0].path if met else f"inode {report.file.inode} of device {report.file.device}"
        self.life.events.publish(
            "alarm",
            met[0].id if met else None,
            reason=f"too many operations wait for seals: some on {where} were refused (EAGAIN)",
        )

    def _met(self, seal: Seal, report: Report) -> None:
        if seal.state is State.COURTESY:
            self.life.step(seal, Step.EXPIRE, "its ttl has passed, and somebody conflicts")
        elif report.outcome is not Outcome.HELD or seal.request.conflict is not Conflict.WAIT:
            return
        elif seal.state is State.ORPHANED and seal.deadline is None:
            # There is nobody to ask; but whoever waits must not wait for ever.
            seal.deadline = clock.now() + seal.request.grace
            self.fencing.await_deadline(seal)
        else:
            self.recall(seal, "conflict", operation=report.operation)

    # Recalls

    def recall(
        self,
        seal: Seal,
        reason: str,
        *,
        operation: Operation | None = None,
        part: ByteRange | None = None,
        grace: float | None = None,
    ) -> None:
        """Start the recall of a seal, or have one that is under way take the new one in. `part` is
        what is wanted of it, if not all; `grace` seconds instead of the seal's own."""
        if seal.state is State.COURTESY:
            self.life.step(seal, Step.EXPIRE, f"its ttl has passed, and it is recalled: {reason}")
            return
        wanted = wanted_of(seal, operation, part)
        if seal.state is State.RECALLED:
            self._merge(seal, reason, operation, wanted, grace)
        elif may(seal, Step.RECALL):
            faults.point("recall:started")
            now = clock.now()
            seal.recalled_at, seal.wanted, seal.intruder = now, wanted, operation
            seal.deadline = now + (seal.request.grace if grace is None else grace)
            seal.ladder.clear()
            self.counters["recalls"] += 1
            self._publish(seal, reason, merged=False)
            self.life.step(seal, Step.RECALL, reason)
            faults.point("recall:told")

    def _merge(
        self,
        seal: Seal,
        reason: str,
        operation: Operation | None,
        wanted: ByteRange,
        grace: float | None,
    ) -> None:
        """The holder hears of it again only when more is wanted, or sooner."""
        self.counters["recalls_merged"] += 1
        before = seal.wanted or seal.range
        seal.wanted = before.hull(wanted)
        deadline = seal.deadline or 0.0
        sooner = grace is not None and clock.now() + grace < deadline
        self._publish(seal, reason, merged=True)
        if sooner:
            seal.deadline = clock.now() + (grace or 0.0)
            self.fencing.await_deadline(seal)
        if sooner or seal.wanted != before:
            self.life.tell(seal, operation)

    def _publish(self, seal: Seal, reason: str, *, merged: bool) -> None:
        self.life.events.publish(
            "recall",
            seal.id,
            reason=reason,
            grace=max(0.0, (seal.deadline or 0.0) - clock.now()),
            wanted=seal.wanted,
            operation=seal.intruder,
            merged=merged,
        )

    def progress(self, seal: Seal) -> None:
        """The holder is at it: the grace begins anew, up to the cap. After that there is nothing to
        gain: one that is overdue stays so."""
        if seal.state is not State.RECALLED or seal.recalled_at is None:
            raise Refusal("bad-request", f"seal {seal.id} is {seal.state}: nothing is under way")
        now, cap = clock.now(), seal.recalled_at + longest_recall(self.policy, seal)
        later = min(cap, now + seal.request.grace)
        if later <= max(now, seal.deadline or 0.0):
            return
        overdue = seal.is_overdue  # if not, the deadline is waited for already
        seal.deadline = later
        seal.climb("progress")
        self.life.journal.progressed(seal)
        seal.publish()
        if not overdue:
            return
        seal.hold.change(seal.verdict)
        self.fencing.await_deadline(seal)

    # Any of them

    def recall_any(self, pid: int, count: int, grace: float | None, reason: str) -> list[Seal]:
        """CB_RECALL_ANY: ask process `pid` for `count` of its seals. Those it has not given back
        after the grace are chosen for it, the oldest first. Returns all that may be concerned."""
        own = [seal for seal in self.table.of_holder(pid) if may(seal, Step.RECALL)]
        count = min(count, len(own))
        grace = _PRESSURE_GRACE if grace is None else grace
        listening: dict[int, list[Seal]] = {}
        for seal in own:
            listening.setdefault(id(seal.client), []).append(seal)
        left = count
        for seals in sorted(listening.values(), key=len, reverse=True):
            if part := min(left, len(seals)):
                message = RecallAny(pid=pid, count=part, grace=grace, reason=reason)
                self.push_any(seals[0], message)
                left -= part
        self.fencing.tasks.spawn(f"recall any of {pid}", self._collect(own, count, grace, reason))
        return own

    async def _collect(self, own: list[Seal], count: int, grace: float, reason: str) -> None:
        deadline = clock.now() + grace
        while sum(not seal.live for seal in own) < count and clock.now() < deadline:
            released = [seal.released for seal in own if seal.live]
            await clock.within(deadline, *released)
        owed = count - sum(not seal.live for seal in own)
        for seal in sorted((s for s in own if s.live), key=lambda s: s.granted_at)[: max(0, owed)]:
            self.recall(seal, f"{reason}: not given back in time")

    def relieve(self) -> None:
        """Under pressure the holders of the most seals are asked to give some back."""
        limit = int(self.policy.max_seals * self.policy.pressure)
        surplus = len(self.table) - limit
        if surplus <= 0 or clock.now() < self._relieved_at + _PRESSURE_PAUSE:
            return
        self._relieved_at = clock.now()
        pid, count = self.table.largest_holder()
        self.recall_any(pid, min(surplus, count), None, "policy.max_seals is nearly reached")

    # What else ends seals

    def lose(self, seal: Seal, reason: str) -> None:
        """The promise cannot be said to hold any more: whoever relies on it must stop at once."""
        if seal.drifted:
            return
        seal.drifted = True
        if may(seal, Step.DRIFT):
            # Of a holder that is gone there is nothing to wait for until somebody conflicts.
            if seal.deadline is None and after(seal.state, Step.DRIFT).to is State.LOST:
                seal.deadline = clock.now() + seal.request.grace
            self.life.step(seal, Step.DRIFT, reason)

    def overlaid(self, seal: Seal, reason: str) -> None:
        """An overlay over a sealed file, mounted after its grant, gets around every enforcer: the
        seal is recalled, and an alarm raised."""
        if may(seal, Step.RECALL):
            self.life.events.publish("alarm", seal.id, reason=reason)
            self.recall(seal, reason)

    def expire(self) -> None:
        """Seals whose ttl has passed are kept by courtesy while nobody conflicts, then end."""
        now = clock.now()
        for seal in self.table:
            if seal.expires is None or now < seal.expires:
                continue
            if self.policy.courtesy and may(seal, Step.LAPSE):
                seal.expires = now + self.policy.courtesy
                self.life.step(seal, Step.LAPSE, "its ttl has passed; nobody conflicts")
            elif may(seal, Step.EXPIRE):
                self.life.step(seal, Step.EXPIRE, "its ttl has passed")


def wanted_of(seal: Seal, operation: Operation | None, part: ByteRange | None = None) -> ByteRange:
    """The part of the seal's range that stands in the way."""
    if part is None and operation is not None and seal.request.kind is Kind.SHARED:
        traits = rules.Trait.REFLINK if seal.filesystem.reflink else rules.Trait(0)
        match rules.reach(rules.of(operation.name), traits | rules.Trait.ATOMIC):
            case rules.Reach.RANGE if operation.length:
                part = ByteRange(operation.offset, operation.length)
            case rules.Reach.RANGE | rules.Reach.TO_END:
                end = max(seal.effective.end, operation.offset + 1)
                part = ByteRange(operation.offset, end - operation.offset)
        part = part and part.rounded(seal.filesystem.block_size)
    return (part and seal.range.clipped(part)) or seal.range


def _log_wait(operation: Operation, recalled: list[Seal]) -> None:
    """One line, when an operation begins a recall: from there whoever looks why a process hangs
    goes on."""
    seal = recalled[0]
    holder = seal.process.holder
    log.info(
        "%s of %s by process %d (%s) waits for seal %s%s of process %d (%s)%s, due in %.1f s,"
        " fence %s: sealctl why %d",
        *(operation.name, printable(seal.path), operation.pid, printable(operation.comm)),
        *(seal.id, f" and {len(recalled) - 1} more" if len(recalled) > 1 else ""),
        *(holder.pid, printable(holder.comm)),
        f", tag {printable(seal.request.tag)}" if seal.request.tag else "",
        *(max(0.0, (seal.deadline or 0.0) - clock.now()), seal.request.fence, operation.pid),
        extra={"fields": {"SEALSVC_SEAL": seal.id, "SEALSVC_EVENT": "conflict"}},
    )
