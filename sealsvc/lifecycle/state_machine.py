"""The state machine of seals. Once a seal is granted, this module alone changes its state, by the
table in core/states.py.

A step is recorded in the journal before anybody learns of it, and its actions are carried out
after that. A service that is killed in between leaves a record from which the next one continues
(recovery.py).
"""

from __future__ import annotations

import logging
import time
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

# End states that the holder did not ask for, and is told of.
_UNASKED = (State.EXPIRED, State.REVOKED)

Push = Callable[[Seal, Recall], bool]


class StateMachine:
    """Carries out the steps of seals. `push(seal, message)` delivers a recall to the seal's holder;
    it returns False when no connection takes it.

    Actions that take time are carried out by fence.py (delegate)."""

    def __init__(self, table: SealTable, events: EventLog, journal: Journal, push: Push) -> None:
        self.table, self.events, self.journal, self.push = table, events, journal, push
        self._does: dict[Action, Callable[[Seal], None]] = {
            Action.TELL: self.tell,
            Action.TELL_CHANGED: self.tell,
            Action.REFUSE: lambda seal: seal.hold.change(Verdict.BUSY),
            Action.RESTORE: self._restore,
            Action.ALARM: self._alarm,
            Action.RELEASE: self._release,
        }

    def delegate(self, actions: dict[Action, Callable[[Seal], None]]) -> None:
        """Have `actions` carried out by these functions. Each is called with the seal, and must
        return at once. Called once, before the first step. Raises ValueError for an action that
        somebody carries out already."""
        if twice := actions.keys() & self._does.keys():
            raise ValueError(f"carried out already: {', '.join(sorted(twice))}")
        self._does |= actions

    def record(self, seal: Seal) -> None:
        """Journal a new seal: after this it survives the service. When this raises OSError, the
        seal was not granted."""
        seal.move(Step.GRANT)
        if seal.request.ttl:
            seal.expires = clock.now() + seal.request.ttl
        faults.point("grant:recording")
        self.journal.granted(seal)
        faults.point("grant:journalled")

    def begin(self, seal: Seal) -> SealInfo:
        """Enter a recorded seal in the table, publish it, and set the verdict of its guards.
        Returns the seal as it was published."""
        seal.tell_changed()
        self.table.add(seal)
        info = seal.info()
        self.events.publish("granted", seal.id, seal=info)
        seal.hold.change(seal.verdict)
        faults.point("grant:published")
        return info

    def step(self, seal: Seal, step: Step, reason: str = "") -> None:
        """Journal a step, publish it, and carry out its actions. Raises KeyError when the table
        does not allow the step, OSError when it cannot be recorded; the seal is then unchanged."""
        was = seal.standing
        transition = seal.move(step, reason)
        try:
            faults.point("step:recording")
            self.journal.progressed(seal)
        except BaseException:
            seal.standing = was
            raise
        faults.point(f"{step}:journalled")
        seal.tell_changed()
        self.events.publish(
            "state",
            seal.id,
            **{"from": was.state, "to": seal.state, "step": step},
            reason=reason,
            seqid=seal.seqid,
        )
        for action in transition.actions:
            self._does[action](seal)

    # Changes of terms

    def shrink(self, seal: Seal, left: ByteRange) -> None:
        """Reduce the seal to the range `left`. The guards are reduced after the change has been
        journalled, because a guard that is wider than its seal is harmless. Raises OSError when the
        change cannot be recorded."""
        self.table.resize(seal, left)
        if seal.wanted is not None:
            seal.wanted = seal.wanted.clipped(left)
        faults.point("shrink:resized")
        self.journal.granted(seal)
        seal.hold.resize(seal.effective)
        seal.tell_changed()

    def change_terms(self, seal: Seal, **changes: Any) -> None:
        """Change fields of the grant that its holder may change: iomode, ttl (seconds). Raises
        OSError when the change cannot be recorded."""
        seal.change_terms(**changes)
        if "ttl" in changes:
            ttl = seal.request.ttl
            seal.expires = clock.now() + ttl if ttl else None
        self.journal.granted(seal)
        seal.tell_changed()

    def remap(self, seal: Seal, found: ExtentMap, reason: str) -> None:
        """End the recall that a relocation started: `found`, an (n, 4) array, is the map that the
        seal promises from now on. Raises OSError when it cannot be recorded."""
        before, seal.map = seal.map, found
        seal.relocating, seal.map_since = False, time.monotonic_ns()
        try:
            self.journal.granted(seal)
            self.step(seal, Step.REMAP, reason)
        except BaseException:
            seal.map = before
            raise

    def downgrade(self, seal: Seal) -> None:
        """Change iomode rw to read."""
        self.change_terms(seal, iomode=IoMode.READ)
        self.step(seal, Step.DOWNGRADE, "the holder only reads from now on")

    # Actions

    def tell(self, seal: Seal, operation: Operation | None = None) -> None:
        """Push the seal's recall, or the message that its map has changed, to the holder."""
        told = self.push(seal, self._notice(seal, operation))
        seal.record_step("notify", "" if told else "nobody listens")
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
        seal.tell_changed()
        seal.hold.change(seal.verdict)

    def _alarm(self, seal: Seal) -> None:
        self.events.publish(
            "alarm",
            seal.id,
            reason=f"seal {seal.id} of {seal.path} is {seal.state}: {seal.reason}",
        )

    def _release(self, seal: Seal) -> None:
        self.table.end(seal)
        faults.point("end:removed")
        seal.hold.release()
        faults.point("end:released")
        seal.released.set()
        # The holder of a seal in a ring sees the end in the seal's slot.
        if seal.state in _UNASKED and seal.place is None and not seal.exited.is_set():
            self.push(seal, self._notice(seal))
        seal.tell_ended()


def may(seal: Seal, step: Step) -> bool:
    """Whether the table allows `step` in the seal's state."""
    return states.allowed(seal.state, step)
