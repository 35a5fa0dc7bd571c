"""Recalls: from a conflict (or an operator's wish) to a return, or to the fence."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Iterable

from sealsvc import faults, filesystem, seals, states
from sealsvc.config import FenceSection
from sealsvc.enforce import Outcome, Report, Verdict
from sealsvc.errors import Refusal
from sealsvc.events import EventLog
from sealsvc.grants import Grants
from sealsvc.messages import Recall
from sealsvc.model import Conflict, Fence, Operation, State
from sealsvc.seals import Seal, SealTable
from sealsvc.states import Step
from sealsvc.tasks import Tasks

log = logging.getLogger(__name__)

_PROOF_PAUSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Recaller:
    """`push(seal, message)` delivers a recall to the seal's holder; False when nobody listens."""

    def __init__(
        self,
        grants: Grants,
        table: SealTable,
        events: EventLog,
        tasks: Tasks,
        fence: FenceSection,
        push: Callable[[Seal, Recall], bool],
    ) -> None:
        self.grants, self.table, self.events, self.tasks = grants, table, events, tasks
        self.fence, self.push = fence, push
        self.waiting: dict[tuple[str, int], Report] = {}
        self.counters = {"conflicts": 0, "recalls": 0, "fences": 0}

    # Conflicts

    def conflict(self, enforcer: str, report: Report) -> None:
        found = [self.table.of_token(token) for token in report.tokens]
        met = [seal for seal in found if seal is not None]
        key = (enforcer, report.waiter)
        if report.outcome is Outcome.ENDED:
            self.waiting.pop(key, None)
            self.events.publish(
                "conflict-ended",
                operation=report.operation,
                result=report.error,
                waited=report.waited,
            )
            return
        self.counters["conflicts"] += 1
        self.events.publish(
            "conflict",
            met[0].id if met else None,
            operation=report.operation,
            seals=[seal.id for seal in met],
            verdict=report.outcome,
            errno=report.error,
        )
        if report.outcome is Outcome.HELD:
            self.waiting[key] = report
            for seal in met:
                if seal.request.conflict is Conflict.WAIT:
                    self.recall(seal, "conflict", operation=report.operation)

    # Recalls

    def recall(
        self,
        seal: Seal,
        reason: str,
        *,
        operation: Operation | None = None,
        grace: float | None = None,
    ) -> None:
        """Start the recall of a seal; one that is under way already takes the new one in."""
        if not states.allowed(seal.state, Step.RECALL):
            return
        faults.point("recall:started")
        grace = seal.request.grace if grace is None else grace
        seal.deadline = seals.boottime() + grace
        self.counters["recalls"] += 1
        self.grants.move(seal, Step.RECALL, reason)
        faults.point("recall:journalled")
        self.tell(seal, operation)
        faults.point("recall:told")
        self.tasks.spawn(f"recall {seal.id}", self._see_through(seal))

    def tell(self, seal: Seal, operation: Operation | None = None) -> None:
        """Push a recall that is under way to the seal's holder."""
        message = Recall(
            seal=seal.id,
            seqid=seal.seqid,
            tag=seal.request.tag,
            range=seal.range,
            grace=_remaining(seal),
            reason=seal.reason,
            operation=operation,
        )
        if not self.push(seal, message):
            log.warning("seal %s: nobody listens for its recall", seal.id)

    def recall_all(self, chosen: Iterable[Seal], reason: str, grace: float | None) -> list[Seal]:
        recalled = list(chosen)
        for seal in recalled:
            self.recall(seal, reason, grace=grace)
        return recalled

    def resume(self, seal: Seal) -> None:
        """Go on with what a dead service had begun; what its kernel half did is done."""
        if seal.exited.is_set():
            self.tasks.spawn(f"exit of {seal.id}", self.holder_exited(seal))
        if seal.state is State.FENCE_FAILED:
            seal.hold.change(Verdict.BUSY)  # it may have died before it said so
        match seal.state:
            case State.RECALLED:
                self.tasks.spawn(f"recall {seal.id}", self._see_through(seal))
            case State.FENCING:
                self.tasks.spawn(f"fence {seal.id}", self._carry_out_fence(seal))
            case State.FENCE_FAILED | State.ORPHANED:
                self.tasks.spawn(f"proof {seal.id}", self._watch_until_proven(seal))

    async def _see_through(self, seal: Seal) -> None:
        released = await _within(seal.released, _remaining(seal))
        if released or seal.state is not State.RECALLED:
            return
        self.counters["fences"] += 1
        faults.point("fence:due")
        match seal.request.fence:
            case Fence.NONE:
                self._refuse_from_now(seal, "the recall's deadline has passed; fence is none")
                return
            case Fence.SIGNAL:
                self.grants.move(seal, Step.FENCE, "SIGTERM")
            case Fence.KILL:
                self.grants.move(seal, Step.FENCE, "SIGKILL")
        faults.point("fence:journalled")
        await self._carry_out_fence(seal)

    async def _carry_out_fence(self, seal: Seal) -> None:
        if seal.request.fence is Fence.SIGNAL:
            seal.process.signal(signal.SIGTERM)
            if await _within(seal.released, self.fence.signal_grace):
                return
        else:
            seal.process.signal(signal.SIGKILL)
            faults.point("fence:signalled")
            await _within(seal.exited, self.fence.proof_timeout)
            faults.point("fence:exited")
        await self._conclude_fence(seal)

    def _refuse_from_now(self, seal: Seal, reason: str) -> None:
        """What waits, and what comes, gets EBUSY; the promise is kept."""
        seal.hold.change(Verdict.BUSY)
        self.events.publish("alarm", seal.id, reason=f"seal {seal.id} of {seal.path}: {reason}")

    async def _conclude_fence(self, seal: Seal) -> None:
        """A seal is over only when it is proven that nothing maps its range."""
        if seal.state is not State.FENCING:
            return
        left = await self._prove(seal, self.fence.proof_timeout if seal.exited.is_set() else 0.0)
        if not seal.live:
            return
        if not left and seal.exited.is_set():
            faults.point("fence:proven")
            self.grants.end(seal, Step.PROVEN, "fenced")
            return
        why = ", ".join(left) or "the holder did not end"
        self.grants.move(seal, Step.UNPROVEN, why)
        faults.point("fence:failed")
        self._refuse_from_now(seal, f"the fence failed: {why}")
        await self._watch_until_proven(seal)

    # A holder's end

    async def holder_exited(self, seal: Seal) -> None:
        """Released by itself, once nothing that it left behind (a child, a descriptor in flight)
        maps the range any more; until then the promise holds."""
        seal.exited.set()
        if states.allowed(seal.state, Step.HOLDER_EXIT):
            self.grants.move(seal, Step.HOLDER_EXIT, "the holder exited")
            faults.point("exit:journalled")
            await self._watch_until_proven(seal)

    async def _watch_until_proven(self, seal: Seal) -> None:
        failed = seal.state
        pause = 0.0
        while seal.state is failed:
            if seal.exited.is_set() and not await self._left(seal):
                if seal.state is failed:
                    self.grants.end(seal, Step.PROVEN, seal.reason)
                return
            pause = min(1.0, pause * 2 or 0.01)
            await _within(seal.released, pause)

    async def _prove(self, seal: Seal, timeout: float) -> list[str]:
        deadline = seals.boottime() + timeout
        for pause in (*_PROOF_PAUSES, *(1.0 for _ in range(60))):
            await asyncio.sleep(pause)
            left = await self._left(seal)
            if not left or seals.boottime() >= deadline:
                break
        return left

    async def _left(self, seal: Seal) -> list[str]:
        try:
            return await self.grants.remnants(seal)
        except (Refusal, OSError) as error:
            return [f"the proof failed: {error}"]

    def lose(self, seal: Seal, reason: str) -> None:
        """The promise cannot be said to hold any more."""
        self.events.publish("alarm", seal.id, reason=f"seal {seal.id} of {seal.path}: {reason}")
        if states.allowed(seal.state, Step.DRIFT):
            self.grants.move(seal, Step.DRIFT, reason)

    def mounts_changed(self) -> None:
        """An overlay over a sealed file, mounted after its grant, is beyond every enforcer: the
        seal is asked back, and an operator told."""
        table = filesystem.mounts()
        for seal in self.table:
            try:
                filesystem.refuse_if_overlay_upper(seal.path, table)
            except Refusal as refusal:
                if states.allowed(seal.state, Step.RECALL):
                    self.events.publish("alarm", seal.id, reason=refusal.message)
                    self.recall(seal, refusal.message)

    def expire(self) -> None:
        """End the seals whose time is up: the promise was for that long."""
        now = seals.boottime()
        for seal in self.table:
            due = seal.expires is not None and now >= seal.expires
            if due and states.allowed(seal.state, Step.EXPIRE):
                self.grants.end(seal, Step.EXPIRE, "its ttl has passed")


def _remaining(seal: Seal) -> float:
    """Seconds until the recall's deadline."""
    return max(0.0, (seal.deadline or 0.0) - seals.boottime())


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
