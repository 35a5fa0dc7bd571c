"""The ladder from a recall to the end of a seal: notify, (grace), signal, (grace), kill, proof.

How far it goes is the seal's own choice (Fence). A seal ends here only when it is proven that
nothing of its holder is left; a process is only ever signalled through a pidfd, which cannot mean
another one. docs/fencing.md says what that is worth for mappings, RDMA and exports.
"""

from __future__ import annotations

import signal

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Fence, State
from sealsvc.core.states import Action, Step
from sealsvc.enforce.base import Verdict
from sealsvc.lifecycle.returns import Returns
from sealsvc.lifecycle.seals import Seal
from sealsvc.lifecycle.state_machine import Life, may
from sealsvc.runtime import clock, faults
from sealsvc.runtime.config import FenceSection
from sealsvc.runtime.tasks import Tasks

_PROOF_PAUSES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_LONGEST_PAUSE = 1.0
_AWAITED = frozenset({State.RECALLED, State.LOST, State.ORPHANED})


class Fencing:
    def __init__(self, life: Life, returns: Returns, tasks: Tasks, section: FenceSection) -> None:
        self.life, self.returns, self.tasks, self.section = life, returns, tasks, section
        self.counters = {"fences": 0, "fences_failed": 0}
        life.on |= {
            Action.AWAIT: self._await,
            Action.SIGNAL: self._signal,
            Action.KILL: self._kill,
            Action.PROVE: self._prove_in_time,
        }

    def resume(self, seal: Seal) -> None:
        """Go on with what a dead service had begun. A signal it may have sent is sent again."""
        before = seal.state
        if seal.exited.is_set():
            self.holder_exited(seal)
        match seal.state:
            case state if state is not before:
                pass  # the holder's end has decided
            case State.RECALLED | State.LOST:
                self.await_deadline(seal)
            case State.FENCING if seal.ladder and seal.ladder[-1].step == "kill":
                self._kill(seal)
            case State.FENCING:
                self._signal(seal)
            case State.FENCE_FAILED | State.ORPHANED:
                if seal.state is State.FENCE_FAILED:
                    seal.hold.change(Verdict.BUSY)  # it may have died before it said so
                self._prove_in_time(seal)
                if seal.deadline is not None:
                    self.await_deadline(seal)

    # The deadline

    def _await(self, seal: Seal) -> None:
        if not seal.is_overdue:  # the map may have changed after that
            self.await_deadline(seal)

    def await_deadline(self, seal: Seal) -> None:
        """Fence at the seal's deadline, which may be moved back; when it was moved forward, this is
        called again."""
        seal.round += 1
        self.tasks.spawn(f"recall {seal.id}", self._see_through(seal, seal.round))

    async def _see_through(self, seal: Seal, mine: int) -> None:
        while not await clock.within(seal.deadline or 0.0, seal.released):
            if seal.round != mine or seal.state not in _AWAITED:
                return
            if seal.deadline is None or clock.now() >= seal.deadline:
                break
        else:
            return
        faults.point("fence:due")
        if seal.state is State.ORPHANED:
            self._overdue(seal, "the holder is gone, and something that it left maps the range")
        elif seal.request.fence is Fence.NONE:
            self._overdue(seal, "the recall's deadline has passed; fence is none")
        else:
            self.counters["fences"] += 1
            self.life.step(seal, Step.FENCE, "the deadline has passed")

    def _overdue(self, seal: Seal, reason: str) -> None:
        """Nobody may be fenced. What waits gets EBUSY rather than wait for ever; the promise
        stays."""
        seal.climb("overdue", reason)
        self.life.step(seal, Step.OVERDUE, reason)

    # The fence

    def _signal(self, seal: Seal) -> None:
        seal.deadline = clock.now() + self.section.signal_grace
        seal.climb("signal", f"SIGTERM to {seal.process.holder.pid}")
        self.life.journal.progressed(seal)
        seal.process.signal(signal.SIGTERM)
        faults.point("fence:signalled")
        self.tasks.spawn(f"fence {seal.id}", self._after_signal(seal))

    async def _after_signal(self, seal: Seal) -> None:
        await clock.within(seal.deadline or 0.0, seal.released, seal.exited)
        if seal.state is not State.FENCING:
            return
        if seal.request.fence is Fence.KILL and not seal.exited.is_set():
            seal.climb("kill", f"SIGKILL to {seal.process.holder.pid}")
            self.life.step(seal, Step.ESCALATE, "SIGTERM did not help")
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
        """A seal is over only when it is proven that nothing of its range is mapped. The deadline
        is that of what went before: a late end of the holder does not move it."""
        left = await self._left_until(seal, seal.deadline or 0.0)
        if seal.state is not State.FENCING:
            return
        if not left:
            faults.point("fence:proven")
            seal.climb("proof")
            self.life.step(seal, Step.PROVEN, "fenced")
            return
        why = ", ".join(left)
        self.counters["fences_failed"] += 1
        seal.deadline = None
        seal.climb("failed", why)
        self.life.step(seal, Step.UNPROVEN, why)

    # Proofs

    def holder_exited(self, seal: Seal) -> None:
        """Released by itself, once nothing that it left behind (a child, a descriptor in flight)
        maps the range any more; until then the promise holds."""
        seal.exited.set()
        if may(seal, Step.HOLDER_EXIT):
            self.life.step(seal, Step.HOLDER_EXIT, f"process {seal.process.holder.pid} has ended")

    def forgotten(self, seal: Seal) -> None:
        """The holder said that it knows no such seal: keep looking until nothing is mapped."""
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
                    seal.climb("proof")
                    self.life.step(seal, Step.PROVEN, seal.reason)
                return
            pause = min(_LONGEST_PAUSE, pause * 2 or 0.01)
            await clock.within(clock.now() + pause, seal.released)

    async def _left_until(self, seal: Seal, deadline: float) -> list[str]:
        """What is left, looked for again and again until then; at once when nothing is."""
        pauses = iter(_PROOF_PAUSES)
        while True:
            await clock.within(clock.now() + next(pauses, _LONGEST_PAUSE))
            left = await self._left(seal)
            if not left or clock.now() >= deadline:
                return left

    async def _left(self, seal: Seal) -> list[str]:
        """Looks only once the holder has ended: before that it may hand on what was not there."""
        if not seal.exited.is_set():
            return ["the holder did not end"]
        try:
            return await self.returns.remnants(seal)
        except (Refusal, OSError) as error:
            return [f"the proof failed: {error}"]
