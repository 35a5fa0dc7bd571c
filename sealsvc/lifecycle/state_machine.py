"""The life of seals: the only mutator of them. Each step goes by the table in states.py.

A step is recorded in the journal before anybody learns of it, and its actions are carried out
after that: whoever is killed in between leaves a record that the next service goes on from
(recovery.py).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from sealsvc.core import states
from sealsvc.core.model import ByteRange, IoMode, Operation, State
from sealsvc.core.states import Action, Step
from sealsvc.enforce.base import Verdict
from sealsvc.lifecycle.journal import Journal
from sealsvc.lifecycle.seals import Seal, SealTable
from sealsvc.linux.host import ExtentMap
from sealsvc.protocol.seals import Recall, SealInfo
from sealsvc.runtime import clock, faults
from sealsvc.runtime.events import EventLog

log = logging.getLogger(__name__)

# Ends that the holder did not ask for: it is told of them.
_UNASKED = (State.EXPIRED, State.REVOKED)

_REMEMBERED = 4096  # seals that are over

Push = Callable[[Seal, Recall], bool]


class Life:
    """`push(seal, message)` delivers a recall to the seal's holder; False when nobody listens.

    The actions that take time are those of fence.py and recall.py, which hang themselves in as
    `on`: each is called with the seal and must return at once."""

    def __init__(self, table: SealTable, events: EventLog, journal: Journal, push: Push) -> None:
        self.table, self.events, self.journal, self.push = table, events, journal, push
        self.on: dict[Action, Callable[[Seal], None]] = {}
        self._ended: OrderedDict[str, SealInfo] = OrderedDict()
        self._does: dict[Action, Callable[[Seal], None]] = {
            Action.TELL: self.tell,
            Action.TELL_CHANGED: self.tell,
            Action.REFUSE: lambda seal: seal.hold.change(Verdict.BUSY),
            Action.RESTORE: self._restore,
            Action.ALARM: self._alarm,
            Action.RELEASE: self._release,
        }

    def record(self, seal: Seal) -> None:
        """From here on the seal outlives us. When this raises, it never was."""
        seal.move(Step.GRANT)
        if seal.request.ttl:
            seal.expires = clock.now() + seal.request.ttl
        faults.point("grant:recording")
        self.journal.granted(seal)
        faults.point("grant:journalled")

    def begin(self, seal: Seal) -> SealInfo:
        """What is recorded becomes known: as what is returned."""
        seal.publish()
        self.table.add(seal)
        info = seal.info()
        self.events.publish("granted", seal.id, seal=info)
        seal.hold.change(seal.verdict)
        faults.point("grant:published")
        return info

    def step(self, seal: Seal, step: Step, reason: str = "") -> None:
        """KeyError when the table does not know the step, OSError when it cannot be recorded: the
        seal is as it was then."""
        was = seal.standing
        transition = seal.move(step, reason)
        try:
            faults.point("step:recording")
            self.journal.progressed(seal)
        except BaseException:
            seal.standing = was
            raise
        faults.point(f"{step}:journalled")
        seal.publish()
        self.events.publish(
            "state",
            seal.id,
            **{"from": was.state, "to": seal.state, "step": step},
            reason=reason,
            seqid=seal.seqid,
        )
        for action in transition.actions:
            (self._does.get(action) or self.on[action])(seal)

    def recorded(self, seal_id: str) -> SealInfo | None:
        """A seal that is over, as it was at its end, while that is remembered."""
        return self._ended.get(seal_id)

    def path_of(self, seal_id: str) -> str | None:
        """The path of a seal's file, also of one that is over while that is remembered."""
        seal = self.table.get(seal_id) or self._ended.get(seal_id)
        return seal.path if seal else None

    def owner_of(self, seal_id: str) -> int | None:
        """The user that holds, or held, a seal; None when it is not remembered."""
        if seal := self.table.get(seal_id):
            return seal.process.holder.uid
        over = self._ended.get(seal_id)
        return over.holder.uid if over else None

    # Changes of terms

    def shrink(self, seal: Seal, left: ByteRange) -> None:
        """The part that was given back is not guarded any more. That the rest is, is recorded
        before: a guard that is wider than its seal does no harm."""
        self.table.resize(seal, left)
        if seal.wanted is not None:
            seal.wanted = seal.wanted.clipped(left)
        faults.point("shrink:resized")
        self.journal.granted(seal)
        seal.hold.resize(seal.effective)
        seal.publish()

    def change_terms(self, seal: Seal, **changes: Any) -> None:
        """Fields of the grant that its holder may change: iomode, ttl."""
        seal.change_terms(**changes)
        if "ttl" in changes:
            ttl = seal.request.ttl
            seal.expires = clock.now() + ttl if ttl else None
        self.journal.granted(seal)
        seal.publish()

    def remap(self, seal: Seal, found: ExtentMap, reason: str) -> None:
        """The recall that a relocation made is over, and `found` is what is promised now."""
        before, seal.map = seal.map, found
        seal.relocating, seal.map_since = False, time.monotonic_ns()
        try:
            self.journal.granted(seal)
            self.step(seal, Step.REMAP, reason)
        except BaseException:
            seal.map = before
            raise

    def downgrade(self, seal: Seal) -> None:
        self.change_terms(seal, iomode=IoMode.READ)
        self.step(seal, Step.DOWNGRADE, "the holder only reads from now on")

    # Actions

    def tell(self, seal: Seal, operation: Operation | None = None) -> None:
        """Push a recall that is under way, or the news that the map has changed, to the holder."""
        told = self.push(seal, self._notice(seal, operation))
        seal.climb("notify", "" if told else "nobody listens")
        self.journal.progressed(seal)
        if not told:
            log.warning("seal %s: nobody listens for its recall", seal.id)

    def _notice(self, seal: Seal, operation: Operation | None = None) -> Recall:
        return Recall(
            seal=seal.id,
            seqid=seal.seqid,
            tag=seal.request.tag,
            range=seal.range,
            wanted=seal.wanted or seal.range,
            grace=max(0.0, (seal.deadline or 0.0) - clock.now()),
            reason=seal.reason,
            fence=seal.request.fence,
            state=seal.state,
            operation=operation or seal.intruder,
            changed=seal.drifted,
            quiesce=seal.relocating,
        )

    def _restore(self, seal: Seal) -> None:
        seal.deadline = seal.recalled_at = seal.wanted = seal.intruder = None
        seal.ladder.clear()
        self.journal.progressed(seal)
        seal.publish()
        seal.hold.change(seal.verdict)

    def _alarm(self, seal: Seal) -> None:
        self.events.publish(
            "alarm",
            seal.id,
            reason=f"seal {seal.id} of {seal.path} is {seal.state}: {seal.reason}",
        )

    def _release(self, seal: Seal) -> None:
        self._ended[seal.id] = seal.info()
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
        self.table.remove(seal)
        faults.point("end:removed")
        seal.hold.release()
        faults.point("end:released")
        seal.released.set()
        # Whoever has a ring sees it in the seal's slot.
        if seal.state in _UNASKED and seal.place is None and not seal.exited.is_set():
            self.push(seal, self._notice(seal))
        seal.at_end()


def may(seal: Seal, step: Step) -> bool:
    return states.allowed(seal.state, step)
