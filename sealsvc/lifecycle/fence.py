"""Fencing: the steps from a recall to the end of a seal (notify, grace, SIGTERM, grace, SIGKILL,
proof).

The seal's terms (`Fence`) decide which of these steps are allowed. Fencing ends a seal only after a
proof that no mapping and no descriptor of its holder is left. Processes are signalled through
pidfds only, because a pid may have been reused. docs/fencing.md says what the proof covers for
mappings, RDMA and exports.
"""

from __future__ import annotations

import signal

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Fence, State
from sealsvc.core.states import Action, Step
from sealsvc.enforce.base import Verdict
from sealsvc.lifecycle.returns import Returns
from sealsvc.lifecycle.seals import Seal
from sealsvc.lifecycle.state_machine import StateMachine, may
from sealsvc.runtime import clock, faults
from sealsvc.runtime.config import FenceSection
from sealsvc.runtime.deadlines import Deadlines
from sealsvc.runtime.tasks import Tasks

_PROOF_PAUSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_LONGEST_PAUSE = 1.0
_AWAITED = frozenset({State.RECALLED, State.LOST, State.ORPHANED})


class Fencing:
    """Carries out the actions AWAIT, SIGNAL, KILL and PROVE of the state table, as tasks on the
    event loop."""

    def __init__(
        self, machine: StateMachine, returns: Returns, tasks: Tasks, section: FenceSection
    ) -> None:
        self.machine, self.returns, self.tasks, self.section = machine, returns, tasks, section
        self.counters = {"fences": 0, "fences_failed": 0}
        self._deadlines = Deadlines(tasks, self._reached, self._awaited)
        machine.delegate(
            {
                Action.AWAIT: self._await,
                Action.SIGNAL: self._signal,
                Action.KILL: self._kill,
                Action.PROVE: self._prove_in_time,
            }
        )

    def resume(self, seal: Seal) -> None:
        """Continue the fence, proof or deadline that a previous service had started. A signal that
        it may have sent already is sent again."""
        before = seal.state
        if seal.exited.is_set():
            self.holder_exited(seal)
        match seal.state:
            case state if state is not before:
                pass  # holder_exited() has moved the seal and started what follows
            case State.RECALLED | State.LOST:
                self.await_deadline(seal)
            case State.FENCING if seal.ladder and seal.ladder[-1].step == "kill":
                self._kill(seal)
            case State.FENCING:
                self._signal(seal)
            case State.FENCE_FAILED | State.ORPHANED:
                if seal.state is State.FENCE_FAILED:
                    # The previous service may have ended before it told the enforcers.
                    seal.hold.change(Verdict.BUSY)
                self._prove_in_time(seal)
                if seal.deadline is not None:
                    self.await_deadline(seal)

    # The deadline

    def _await(self, seal: Seal) -> None:
        if not seal.is_overdue:  # a seal whose deadline has passed already may become LOST
            self.await_deadline(seal)

    def await_deadline(self, seal: Seal) -> None:
        """Have the seal fenced at its deadline, also if that is postponed; after a deadline was
        brought forward, this must be called again."""
        seal.round += 1
        self._deadlines.add(seal.deadline or 0.0, seal.token, seal.round)

    def _awaited(self, token: int, round: int) -> bool:
        seal = self.machine.table.of_token(token)
        return seal is not None and seal.round == round and seal.state in _AWAITED

    def _reached(self, token: int, round: int) -> None:
        seal = self.machine.table.of_token(token)
        if seal is not None and self._awaited(token, round):
            self.tasks.spawn(f"deadline of {seal.id}", self._see_through(seal, round))

    async def _see_through(self, seal: Seal, round: int) -> None:
        if not self._awaited(seal.token, round):
            return
        if seal.deadline is not None and clock.now() < seal.deadline:  # it was postponed
            self._deadlines.add(seal.deadline, seal.token, round)
            return
        faults.point("fence:due")
        if seal.state is State.ORPHANED:
            self._overdue(seal, "the holder is gone, and something that it left maps the range")
        elif seal.request.fence is Fence.NONE:
            self._overdue(seal, "the recall's deadline has passed; fence is none")
        else:
            self.counters["fences"] += 1
            self.machine.step(seal, Step.FENCE, "the deadline has passed")

    def _overdue(self, seal: Seal, reason: str) -> None:
        """The deadline has passed and the seal's terms allow no fence: conflicting operations that
        wait get EBUSY instead of waiting for ever. The seal stays in force."""
        seal.record_step("overdue", reason)
        self.machine.step(seal, Step.OVERDUE, reason)

    # The fence

    def _signal(self, seal: Seal) -> None:
        seal.deadline = clock.now() + self.section.signal_grace
        seal.record_step("signal", f"SIGTERM to {seal.process.holder.pid}")
        self.machine.journal.progressed(seal)
        seal.process.signal(signal.SIGTERM)
        faults.point("fence:signalled")
        self.tasks.spawn(f"fence {seal.id}", self._after_signal(seal))

    async def _after_signal(self, seal: Seal) -> None:
        await clock.within(seal.deadline or 0.0, seal.released, seal.exited)
        if seal.state is not State.FENCING:
            return
        if seal.request.fence is Fence.KILL and not seal.exited.is_set():
            seal.record_step("kill", f"SIGKILL to {seal.process.holder.pid}")
            self.machine.step(seal, Step.ESCALATE, "SIGTERM did not help")
            return
        if seal.exited.is_set():
            seal.deadline = clock.now() + self.section.proof_timeout
        await self._conclude(seal)

    def _kill(self, seal: Seal) -> None:
        seal.deadline = clock.now() + self.section.proof_timeout
        seal.process.signal(signal.SIGKILL)
        faults.point("fence:killed")
        self.tasks.spawn(f"fence {seal.id}", self._after_kill(seal))

    async def _after_kill(self, seal: Seal) -> None:
        await clock.within(seal.deadline or 0.0, seal.released, seal.exited)
        faults.point("fence:exited")
        await self._conclude(seal)

    async def _conclude(self, seal: Seal) -> None:
        """End the seal once the proof succeeds, or move it to FENCE_FAILED at its deadline. The
        deadline is the one that the previous step set: a holder that exits late does not postpone
        it."""
        left = await self._left_until(seal, seal.deadline or 0.0)
        if seal.state is not State.FENCING:
            return
        if not left:
            faults.point("fence:proven")
            seal.record_step("proof")
            self.machine.step(seal, Step.PROVEN, "fenced")
            return
        why = ", ".join(left)
        self.counters["fences_failed"] += 1
        seal.deadline = None
        seal.record_step("failed", why)
        self.machine.step(seal, Step.UNPROVEN, why)

    # Proofs

    def holder_exited(self, seal: Seal) -> None:
        """Record that the holder's process has ended. The seal stays in force until a proof shows
        that nothing which outlives the process (a child, a descriptor in flight) maps the range."""
        seal.exited.set()
        if may(seal, Step.HOLDER_EXIT):
            self.machine.step(
                seal, Step.HOLDER_EXIT, f"process {seal.process.holder.pid} has ended"
            )

    def forgotten(self, seal: Seal) -> None:
        """The holder answered that it does not know the seal: retry the proof until nothing is
        mapped, then end the seal."""
        self.tasks.spawn(f"forgotten {seal.id}", self._watch_forgotten(seal))

    async def _watch_forgotten(self, seal: Seal) -> None:
        pause = 0.01
        while seal.live and not await self.returns.forget(seal):
            await clock.within(clock.now() + pause, seal.released)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def _prove_in_time(self, seal: Seal) -> None:
        self.tasks.spawn(f"proof {seal.id}", self._watch_until_proven(seal))

    async def _watch_until_proven(self, seal: Seal) -> None:
        state, pause = seal.state, 0.0
        while seal.live and seal.state is state:
            if not await self._left(seal):
                if seal.state is state:
                    seal.record_step("proof")
                    self.machine.step(seal, Step.PROVEN, seal.reason)
                return
            pause = min(_LONGEST_PAUSE, pause * 2 or 0.01)
            await clock.within(clock.now() + pause, seal.released)

    async def _left_until(self, seal: Seal, deadline: float) -> list[str]:
        """Repeat the proof until nothing is left or `deadline` (seconds, runtime/clock.py) has
        passed. Returns what was left at the last attempt; empty when the proof succeeded."""
        pauses = iter(_PROOF_PAUSES)
        while True:
            await clock.within(clock.now() + next(pauses, _LONGEST_PAUSE))
            left = await self._left(seal)
            if not left or clock.now() >= deadline:
                return left

    async def _left(self, seal: Seal) -> list[str]:
        """What is left of the seal, as text. Not looked for before the holder has ended: until then
        it may pass its mappings and descriptors on after the look."""
        if not seal.exited.is_set():
            return ["the holder did not end"]
        try:
            return await self.returns.remaining_mappings(seal)
        except (Refusal, OSError) as error:
            return [f"the proof failed: {error}"]
