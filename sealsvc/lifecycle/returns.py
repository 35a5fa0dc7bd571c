"""Returns of seals and of parts of them, downgrades, and the proof that nothing is mapped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, IoMode, State
from sealsvc.core.states import Step
from sealsvc.lifecycle.seals import Seal
from sealsvc.lifecycle.state_machine import StateMachine, may
from sealsvc.linux.host import Host
from sealsvc.runtime import faults
from sealsvc.runtime.workers import Pool, Workers


class Returns:
    """Carries out returns. `settle(seal, part)` is called when nothing of the part (None: of the
    seal) is mapped any more, while the seal is still in force; it returns True if it has waited for
    anything, because the proof must then be repeated. `unsettle(seal)` is called when a return
    fails and the seal continues, also if `settle` was not called."""

    def __init__(
        self,
        machine: StateMachine,
        host: Host,
        workers: Workers,
        settle: Callable[[Seal, ByteRange | None], Awaitable[bool]],
        unsettle: Callable[[Seal], None],
    ) -> None:
        self.machine, self.host, self.workers = machine, host, workers
        self.settle, self.unsettle = settle, unsettle
        self.counters = {"returns": 0, "partial_returns": 0, "forgotten": 0}

    async def remaining_mappings(self, seal: Seal, part: ByteRange | None = None) -> list[str]:
        """What still maps or references the seal's range (or `part` of it), as text. An empty list
        is the proof that nothing does; it is valid until the caller next awaits anything. Raises
        Refusal and OSError when the proof cannot be made."""
        while True:
            kept_by = self._kept_by_others(seal)
            question = seal.question(_by_process(kept_by), part)
            if self.host.is_free(question):
                return []
            found = await self._processes(seal).run(self.host.remaining_mappings, question)
            # A seal that explains a mapping may have ended or shrunk meanwhile: then look again.
            if found or kept_by.items() <= self._kept_by_others(seal).items():
                return [str(remaining) for remaining in found]

    def _kept_by_others(self, seal: Seal) -> dict[Seal, ByteRange]:
        """Other seals of the file that explain what their holders map of this seal's range.
        Excluded are courtesy seals, seals whose holder has ended (another process may have its
        pid), and, where the holder is the same, seals of a ring and their registration, which end
        together."""
        pid = seal.process.holder.pid
        return {
            other: other.effective
            for other in self.machine.table.of_file(seal.file)
            if other is not seal
            and other.state is not State.COURTESY
            and not other.exited.is_set()
            and other.effective.overlaps(seal.effective)
            and not (other.process.holder.pid == pid and other.place is not None)
        }

    async def give_back(self, seal: Seal, reason: str = "") -> None:
        """Return the whole seal (LAYOUTRETURN). Raises Refusal `still-mapped`, and changes nothing,
        while a mapping is left."""
        with self._unsettled_if_refused(seal):
            await self._give_back(seal, reason)

    async def _give_back(self, seal: Seal, reason: str) -> None:
        await self._refuse_if_mapped(seal)
        if seal.live and await self.settle(seal, None):
            await self._refuse_if_mapped(seal)
        if seal.live:
            faults.point("return:proven")
            self.counters["returns"] += 1
            # An orphaned seal has no holder that could return it; it was proven free all the same.
            if may(seal, Step.RETURN):
                self.machine.step(seal, Step.RETURN, reason)
            else:
                self.machine.step(seal, Step.PROVEN, reason or seal.reason)

    async def give_back_part(self, seal: Seal, part: ByteRange) -> None:
        """Return a part, which must be at one end of the seal's range. A block that the part shares
        with the rest stays sealed. When nothing is left of what a recall wanted, the recall is
        over. Raises Refusal `still-mapped`, `bad-request` or `try-later`."""
        with self._unsettled_if_refused(seal):
            await self._give_back_part(seal, part)

    async def _give_back_part(self, seal: Seal, part: ByteRange) -> None:
        left = _rest(seal, part)
        if left is None:
            await self._give_back(seal, "all of it was returned")
            return
        kept = left.rounded(seal.filesystem.block_size)
        freed = seal.effective.without(kept)
        if freed is not None:
            await self._refuse_if_mapped(seal, freed)
            if await self.settle(seal, freed):
                await self._refuse_if_mapped(seal, freed)
        if not seal.live:
            return
        if not may(seal, Step.SHRINK) or _rest(seal, part) != left:
            raise Refusal("try-later", f"seal {seal.id} is {seal.state} meanwhile", retry_after=0.1)
        self.counters["partial_returns"] += 1
        satisfied = seal.wanted is not None and seal.wanted.clipped(left) is None
        self.machine.shrink(seal, left)
        self.machine.step(seal, Step.SHRINK, f"{part} was returned")
        if satisfied and may(seal, Step.SATISFY):
            self.machine.step(seal, Step.SATISFY, "what was recalled has been returned")

    @contextmanager
    def _unsettled_if_refused(self, seal: Seal) -> Iterator[None]:
        """Call `unsettle` if the return fails: the holder may write again."""
        try:
            yield
        except BaseException:
            if seal.live:
                self.unsettle(seal)
            raise

    async def forget(self, seal: Seal) -> bool:
        """The holder does not know the seal: end it if nothing is mapped. False while something
        is."""
        if await self.remaining_mappings(seal):
            return False
        if seal.live and may(seal, Step.FORGET):
            self.counters["forgotten"] += 1
            self.machine.step(seal, Step.FORGET, "the holder knows no such seal")
        return True

    async def downgrade(self, seal: Seal) -> None:
        """Change iomode rw to read. Raises Refusal `still-mapped` while the holder maps the range
        writably, `try-later` in a state that does not allow it."""
        if seal.request.iomode is IoMode.READ:
            return
        pid = seal.process.holder.pid
        question = seal.question({})
        writable = await self._processes(seal).run(self.host.writable_mappings, question)
        if not seal.live:
            return
        if writable:
            found = [
                str(r) if r.why else f"process {pid} maps {r.range} writably" for r in writable
            ]
            raise Refusal(
                "still-mapped", f"seal {seal.id}: {', '.join(found)}", {"mappings": found}, 0.05
            )
        if not may(seal, Step.DOWNGRADE):
            raise Refusal("try-later", f"seal {seal.id} is {seal.state}", retry_after=1.0)
        self.machine.downgrade(seal)

    def _processes(self, seal: Seal) -> Pool:
        """The worker pool of proofs. It is separate from those of grants and validations, which may
        hang: a proof looks at processes and not at the file, and no process can delay it for long
        (native/kernel/walk.h)."""
        return self.workers.of(("proofs", seal.file.device))

    async def _refuse_if_mapped(self, seal: Seal, part: ByteRange | None = None) -> None:
        left = await self.remaining_mappings(seal, part)
        if left and seal.live:
            raise Refusal(
                "still-mapped", f"seal {seal.id}: {', '.join(left)}", {"mappings": left}, 0.05
            )


def _by_process(seals: dict[Seal, ByteRange]) -> dict[int, list[ByteRange]]:
    ranges: dict[int, list[ByteRange]] = {}
    for seal, range in seals.items():
        ranges.setdefault(seal.process.holder.pid, []).append(range)
    return ranges


def _rest(seal: Seal, part: ByteRange) -> ByteRange | None:
    try:
        return seal.range.without(part)
    except ValueError as error:
        raise Refusal(
            "bad-request",
            f"the part {part} of seal {seal.id} ({seal.range}) cannot be returned: {error}",
            {"range": {"offset": seal.range.offset, "length": seal.range.length}},
        ) from None
