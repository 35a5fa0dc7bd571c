"""Recalls: from a conflict, or an operator's request, to the message that the holder gets.

fence.py handles the deadline, returns.py the return of a seal.
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
from sealsvc.lifecycle.policy import Policy, longest_recall
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.lifecycle.state_machine import StateMachine, may
from sealsvc.protocol.seals import RecallAny
from sealsvc.runtime import clock, faults

log = logging.getLogger(__name__)

_MOST_REPEATED = 256  # kinds of refused operations that are counted apart between two take()s
_PRESSURE_PAUSE = 10.0  # seconds between two requests to give seals back under pressure
_PRESSURE_GRACE = 10.0  # seconds
_CROWDED_PAUSE = 10.0  # seconds between two alarms about too many waiters


@dataclass(frozen=True, slots=True)
class Waiting:
    """An operation that waits for the seals with the ids `seals`, since `since` (seconds,
    runtime/clock.py). `path` is that of the first seal."""

    enforcer: str
    report: Report
    seals: list[str]
    path: str
    since: float


class Repeats:
    """Counts refused operations that are repeated, so that a caller that retries as fast as it is
    refused costs the service one event and a counter. `take` clears it; in between at most
    _MOST_REPEATED kinds are kept apart."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], tuple[Report, int]] = {}

    def is_first(self, report: Report) -> bool:
        """Count the report. True when it is the first of its kind, to be published at once."""
        operation = report.operation
        key: tuple[object, ...] = (report.tokens, operation.name, operation.pid, report.error)
        if len(self._seen) >= _MOST_REPEATED:
            key = ()  # too many kinds: all further reports are counted together
        first, count = self._seen.get(key, (report, 0))
        self._seen[key] = (first, count + 1)
        return count == 0

    def take(self) -> list[tuple[Report, int]]:
        """The first report of each kind that was repeated, and how many followed it."""
        seen, self._seen = self._seen, {}
        return [(report, count - 1) for report, count in seen.values() if count > 1]


class Recaller:
    """Starts recalls. `push_any(seal, message)` delivers a RecallAny to the connection that gets
    the seal's recalls; False when there is none."""

    def __init__(
        self,
        machine: StateMachine,
        fencing: Fencing,
        policy: Policy,
        push_any: Callable[[Seal, RecallAny], bool],
    ) -> None:
        self.machine, self.fencing, self.policy, self.push_any = machine, fencing, policy, push_any
        self.table: SealTable = machine.table
        self.waiting: dict[tuple[str, int], Waiting] = {}
        self.counters = {"conflicts": 0, "recalls": 0, "recalls_merged": 0}
        self._relieved_at = -_PRESSURE_PAUSE
        self._refused = Repeats()
        self._crowded_at = -_CROWDED_PAUSE

    # Conflicts

    def conflict(self, enforcer: str, report: Report) -> None:
        """Handle an enforcer's report: publish it, and recall the seals that a held operation
        met."""
        found = [self.table.of_token(token) for token in report.tokens]
        met = [seal for seal in found if seal is not None]
        key = (enforcer, report.waiter)
        if report.outcome is Outcome.ENDED:
            waited = self.waiting.pop(key, None)
            self.machine.events.publish(
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
        self.machine.events.publish(
            "conflict",
            met[0].id if met else None,
            operation=report.operation,
            seals=[seal.id for seal in met],
            verdict=report.outcome,
            errno=report.error,
            **more,
        )

    def publish_repeated(self) -> None:
        """Publish one event for each kind of refusal that was repeated since the last call. Called
        periodically."""
        for first, count in self._refused.take():
            detail = f"{first.operation.detail} ({count} more since)".lstrip()
            operation = msgspec.structs.replace(first.operation, detail=detail)
            report = replace(first, operation=operation)
            found = [self.table.of_token(token) for token in report.tokens]
            self._publish_conflict(report, [s for s in found if s is not None], repeated=count)

    def _crowded(self, report: Report, met: list[Seal]) -> None:
        """Raise an alarm: an operation was refused because too many wait (docs/rules.md). At most
        one alarm in _CROWDED_PAUSE seconds."""
        if clock.now() < self._crowded_at + _CROWDED_PAUSE:
            return
        self._crowded_at = clock.now()
        where = met[0].path if met else f"inode {report.file.inode} of device {report.file.device}"
        self.machine.events.publish(
            "alarm",
            met[0].id if met else None,
            reason=f"too many operations wait for seals: some on {where} were refused (EAGAIN)",
        )

    def _met(self, seal: Seal, report: Report) -> None:
        if seal.state is State.COURTESY:
            self.machine.step(seal, Step.EXPIRE, "its ttl has passed, and somebody conflicts")
        elif report.outcome is not Outcome.HELD or seal.request.conflict is not Conflict.WAIT:
            return
        elif seal.state is State.ORPHANED and seal.deadline is None:
            # No holder is left to recall it from, but the operation must not wait for ever.
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
        """Start the recall of a seal, or merge the request into a recall that is under way. `part`
        is the range that is wanted (None: it follows from `operation`, else the whole seal),
        `grace` replaces the seal's own grace (seconds). Does nothing in a state that cannot be
        recalled. Raises OSError when the recall cannot be recorded."""
        if seal.state is State.COURTESY:
            self.machine.step(
                seal, Step.EXPIRE, f"its ttl has passed, and it is recalled: {reason}"
            )
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
            self.machine.step(seal, Step.RECALL, reason)
            faults.point("recall:told")

    def _merge(
        self,
        seal: Seal,
        reason: str,
        operation: Operation | None,
        wanted: ByteRange,
        grace: float | None,
    ) -> None:
        """Tell the holder again only when more is wanted, or the deadline is earlier."""
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
            self.machine.tell(seal, operation)

    def _publish(self, seal: Seal, reason: str, *, merged: bool) -> None:
        self.machine.events.publish(
            "recall",
            seal.id,
            reason=reason,
            grace=max(0.0, (seal.deadline or 0.0) - clock.now()),
            wanted=seal.wanted,
            operation=seal.intruder,
            merged=merged,
        )

    def progress(self, seal: Seal) -> None:
        """The holder reports progress: its grace starts again, up to longest_recall() after the
        start of the recall. Beyond that limit the report has no effect, and an overdue seal stays
        overdue. Raises Refusal `bad-request` when no recall is under way."""
        if seal.state is not State.RECALLED or seal.recalled_at is None:
            raise Refusal("bad-request", f"seal {seal.id} is {seal.state}: nothing is under way")
        now, cap = clock.now(), seal.recalled_at + longest_recall(self.policy.section, seal)
        later = min(cap, now + seal.request.grace)
        if later <= max(now, seal.deadline or 0.0):
            return
        overdue = seal.is_overdue  # if it is not, a task waits for the deadline already
        seal.deadline = later
        seal.record_step("progress")
        self.machine.journal.progressed(seal)
        seal.tell_changed()
        if not overdue:
            return
        seal.hold.change(seal.verdict)
        self.fencing.await_deadline(seal)

    # Any of them

    def recall_any(self, pid: int, count: int, grace: float | None, reason: str) -> list[Seal]:
        """CB_RECALL_ANY (RFC 8881 section 20.6): ask process `pid` for `count` of its seals. If it
        has returned fewer after `grace` seconds (None: _PRESSURE_GRACE), the oldest are recalled.
        Returns all its seals that can be recalled."""
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
        """Ask the holder of the most seals to return some when the table has more than
        `policy.max_seals * policy.pressure`. At most once in _PRESSURE_PAUSE seconds."""
        section = self.policy.section
        limit = int(section.max_seals * section.pressure)
        surplus = len(self.table) - limit
        if surplus <= 0 or clock.now() < self._relieved_at + _PRESSURE_PAUSE:
            return
        self._relieved_at = clock.now()
        pid, count = self.table.largest_holder()
        self.recall_any(pid, min(surplus, count), None, "policy.max_seals is nearly reached")

    # What else ends seals

    def lose(self, seal: Seal, reason: str) -> None:
        """The map has changed, or the seal cannot be protected any longer: the holder is told to
        stop using it at once. Does nothing the second time."""
        if seal.drifted:
            return
        seal.drifted = True
        if may(seal, Step.DRIFT):
            # Only where the next state is LOST: an orphaned seal gets a deadline from a conflict.
            if seal.deadline is None and after(seal.state, Step.DRIFT).to is State.LOST:
                seal.deadline = clock.now() + seal.request.grace
            self.machine.step(seal, Step.DRIFT, reason)

    def overlaid(self, seal: Seal, reason: str) -> None:
        """An overlay that was mounted over a sealed file after the grant bypasses every enforcer:
        raise an alarm and recall the seal."""
        if may(seal, Step.RECALL):
            self.machine.events.publish("alarm", seal.id, reason=reason)
            self.recall(seal, reason)

    def expire(self) -> None:
        """Move seals whose ttl has passed to COURTESY for `policy.courtesy` seconds, and end those
        whose courtesy has passed. Called periodically."""
        now = clock.now()
        for seal in self.table:
            if seal.expires is None or now < seal.expires:
                continue
            courtesy = self.policy.section.courtesy
            if courtesy and may(seal, Step.LAPSE):
                seal.expires = now + courtesy
                self.machine.step(seal, Step.LAPSE, "its ttl has passed; nobody conflicts")
            elif may(seal, Step.EXPIRE):
                self.machine.step(seal, Step.EXPIRE, "its ttl has passed")


def wanted_of(seal: Seal, operation: Operation | None, part: ByteRange | None = None) -> ByteRange:
    """The range that a recall wants: the part of `seal.range` that `part` or the operation
    reaches, in bytes; the whole range where neither is known to reach less."""
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
    """Log one line when a held operation has started a recall: the place to start from when a
    process hangs."""
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
