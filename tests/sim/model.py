"""The reference model of the whole life of seals: what the service must do, in its simplest form.

No I/O, no tasks, no enforcers: files are sets of seals, time is a number, and everything that is
due happens when time is moved on. tests/sim/test_life_model.py has hypothesis drive the service
against it. Where the two differ, one of them is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Seconds. So long that what the run itself takes does not matter.
SIGNAL_GRACE = 1000.0
PROOF_TIMEOUT = 500.0
COURTESY = 1e6
MAX_RECALL = 5000.0
MARGIN = 50.0  # by which a moment is passed when time is moved on to it
SETTLING = {"recalled", "fencing", "fence-failed", "orphaned", "lost"}
OVER = {"returned", "revoked", "expired"}


@dataclass(eq=False)
class Process:
    """A holder, or one that maps what it was given by a holder and has no seal itself."""

    name: int
    deaf: bool
    alive: bool = True


@dataclass
class Seal:
    name: int
    file: str
    holder: Process
    start: int
    end: int
    kind: str
    conflict: str
    fence: str
    grace: float
    ttl: float
    state: str = "granted"
    seqid: int = 1
    deadline: float | None = None
    expires: float | None = None
    recalled_at: float = 0.0
    wanted: tuple[int, int] | None = None
    overdue: bool = False
    ended: bool = False  # the holder's end has been noticed by the fence
    drifted: bool = False

    @property
    def live(self) -> bool:
        return self.state not in OVER

    def move(self, state: str) -> None:
        self.state = state
        self.seqid += 1

    def meets(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end


@dataclass
class Conflict:
    name: int
    file: str
    start: int
    end: int
    result: str | None = None


class Refused(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Model:
    now: float = 0.0
    seals: list[Seal] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    maps: dict[str, set[Process]] = field(default_factory=dict)  # by file

    def of_file(self, file: str) -> list[Seal]:
        return [seal for seal in self.seals if seal.live and seal.file == file]

    # Requests

    def grant(self, seal: Seal) -> None:
        for other in self.of_file(seal.file):
            exclusive = "exclusive" in (seal.kind, other.kind)
            if other.state == "courtesy" and (exclusive or other.meets(seal.start, seal.end)):
                other.move("expired")
        held = self.of_file(seal.file)
        if any(other.state in SETTLING for other in held):
            raise Refused("try-later")
        for other in held:
            exclusive = "exclusive" in (seal.kind, other.kind)
            if exclusive and (other.holder is not seal.holder or other.kind != seal.kind):
                raise Refused("seal-conflict")
        if seal.ttl:
            seal.expires = self.now + seal.ttl
        self.seals.append(seal)
        self.settle()

    def validate(self, seal: Seal) -> None:
        self._must_live(seal)
        if not seal.holder.alive:
            raise Refused("no-such-holder")
        if seal.holder not in self._mappers(seal.file):
            raise Refused("mapping-invalid")
        if seal.state == "granted":
            seal.move("active")

    def recall(self, seal: Seal, wanted: tuple[int, int] | None, grace: float | None) -> None:
        if not seal.live:
            raise Refused("no-such-seal")
        self._recall(seal, wanted or (seal.start, seal.end), grace)
        self.settle()

    def _recall(self, seal: Seal, wanted: tuple[int, int], grace: float | None) -> None:
        if seal.state == "courtesy":
            seal.move("expired")
        elif seal.state == "recalled":
            before = seal.wanted or (seal.start, seal.end)
            seal.wanted = (min(before[0], wanted[0]), max(before[1], wanted[1]))
            if grace is not None and self.now + grace < (seal.deadline or 0):
                seal.deadline = self.now + grace
        elif seal.state in ("granted", "active"):
            seal.move("recalled")
            seal.recalled_at, seal.wanted, seal.overdue = self.now, wanted, False
            seal.deadline = self.now + (seal.grace if grace is None else grace)

    def progress(self, seal: Seal) -> None:
        self._must_live(seal)
        if seal.state != "recalled":
            raise Refused("bad-request")
        later = min(seal.recalled_at + MAX_RECALL, self.now + seal.grace)
        if later > max(self.now, seal.deadline or 0):
            seal.deadline, seal.overdue = later, False

    def give_back(self, seal: Seal, part: tuple[int, int] | None = None) -> None:
        self._must_live(seal)
        if part is None or part == (seal.start, seal.end):
            self._must_be_unmapped(seal)
            seal.move("returned")
        else:
            if not (part[0] == seal.start) ^ (part[1] == seal.end):
                raise Refused("bad-request")
            self._must_be_unmapped(seal, part)
            if seal.state in ("fencing", "fence-failed", "orphaned"):
                raise Refused("try-later")
            if part[0] == seal.start:
                seal.start = part[1]
            else:
                seal.end = part[0]
            seal.move(seal.state)
            if seal.wanted and not seal.meets(*seal.wanted):
                seal.wanted = None
                if seal.state == "recalled":
                    seal.move("granted")
                    seal.deadline, seal.overdue = None, False
            elif seal.wanted:
                seal.wanted = (max(seal.wanted[0], seal.start), min(seal.wanted[1], seal.end))
        self.settle()

    def forgotten(self, seal: Seal) -> None:
        self._must_live(seal)
        if seal.state == "orphaned" or self._left(seal):
            return
        seal.move("returned")
        self.settle()

    def downgrade(self, seal: Seal) -> None:
        self._must_live(seal)
        if seal.holder in self._mappers(seal.file):
            raise Refused("still-mapped")
        if seal.state not in ("granted", "active", "recalled"):
            raise Refused("try-later")
        seal.move(seal.state)

    def renew(self, seal: Seal, ttl: float) -> None:
        self._must_live(seal)
        seal.ttl = ttl
        seal.expires = self.now + ttl if ttl else None
        if seal.state == "courtesy":
            seal.move("granted")

    def _must_live(self, seal: Seal) -> None:
        if not seal.live:
            raise Refused("no-such-seal")

    def _must_be_unmapped(self, seal: Seal, part: tuple[int, int] | None = None) -> None:
        if self._left(seal, part):
            raise Refused("still-mapped")

    def _left(self, seal: Seal, part: tuple[int, int] | None = None) -> set[Process]:
        """Who maps of the seal's range, or of this part of it, what it has not sealed itself."""
        start, end = part or (seal.start, seal.end)
        return {
            process
            for process in self._mappers(seal.file)
            if not self._has_sealed(process, seal, start, end)
        }

    def _has_sealed(self, process: Process, seal: Seal, start: int, end: int) -> bool:
        """All of the range, by other seals: what it maps there is kept by those."""
        at = start
        for other in sorted(self.of_file(seal.file), key=lambda other: other.start):
            keeps = other is not seal and other.holder is process and other.state != "courtesy"
            if keeps and other.start <= at:
                at = max(at, other.end)
        return at >= end

    def _mappers(self, file: str) -> set[Process]:
        return {process for process in self.maps.get(file, set()) if process.alive}

    # The world

    def begin_conflict(self, conflict: Conflict) -> None:
        self.conflicts.append(conflict)
        self.settle()

    def _met(self, conflict: Conflict) -> list[Seal]:
        return [s for s in self.of_file(conflict.file) if s.meets(conflict.start, conflict.end)]

    def map(self, file: str, process: Process) -> None:
        self.maps.setdefault(file, set()).add(process)

    def unmap(self, file: str, process: Process) -> None:
        self.maps.get(file, set()).discard(process)
        self.settle()

    def end_holder(self, holder: Process) -> None:
        holder.alive = False
        self.settle()

    def drift(self, file: str) -> None:
        """The map has changed under every seal of the file, and an audit looks."""
        for seal in self.of_file(file):
            if seal.drifted:
                continue
            seal.drifted = True
            stays = seal.state in ("fencing", "fence-failed", "orphaned")
            if seal.deadline is None and not stays:
                seal.deadline = self.now + seal.grace
            seal.move(seal.state if stays else "lost")
        self.settle()

    def advance(self, seconds: float) -> None:
        """All that is due by then happens now; at most one moment's worth: see next_due."""
        self.now += seconds
        for seal in self.seals:
            if seal.expires is not None and self._expires(seal) and seal.expires <= self.now:
                if seal.state in ("granted", "active"):
                    seal.move("courtesy")
                    seal.expires = self.now + COURTESY
                else:
                    seal.move("expired")
        for seal in self._due(self.now):
            self._deadline(seal)
            self._judge_all()  # whoever is refused now hears of it before what follows
        self.settle()

    def next_due(self) -> float | None:
        moments = [s.deadline for s in self.seals if s.deadline is not None and self._awaits(s)]
        moments += [s.expires for s in self.seals if s.expires is not None and self._expires(s)]
        return min(moments, default=None)

    def _due(self, moment: float) -> list[Seal]:
        return [
            seal
            for seal in self.seals
            if seal.deadline is not None and self._awaits(seal) and seal.deadline <= moment
        ]

    def is_open(self, moment: float) -> bool:
        """Whether the last look for a proof falls together with a fence that may end the very
        process that it looks for: it sees it or not."""
        due = self._due(moment)
        return 0 < sum(seal.ended for seal in due) < len(due)

    @staticmethod
    def _awaits(seal: Seal) -> bool:
        if seal.state in ("recalled", "orphaned", "lost"):
            return not seal.overdue
        return seal.state == "fencing"

    @staticmethod
    def _expires(seal: Seal) -> bool:
        return seal.state in ("granted", "active", "courtesy", "recalled")

    def _deadline(self, seal: Seal) -> None:
        if seal.state == "fencing":
            if seal.fence == "kill" and not seal.ended:
                seal.move("fencing")
                seal.holder.alive = False
            else:
                seal.deadline = None
                seal.move("fence-failed")
        elif seal.state == "orphaned" or seal.fence == "none":
            seal.overdue = True
            seal.move(seal.state)
        else:
            seal.move("fencing")
            seal.deadline = self.now + SIGNAL_GRACE
            seal.holder.alive = seal.holder.alive and seal.holder.deaf

    def settle(self) -> None:
        """What follows by itself, until nothing more does."""
        while self._settle_once():
            pass

    def _settle_once(self) -> bool:
        for seal in self.seals:
            if not seal.live or seal.holder.alive:
                continue
            if seal.state in ("granted", "active", "courtesy", "recalled", "lost"):
                seal.move("orphaned")
                return True
            if seal.state in ("fencing", "fence-failed", "orphaned") and not self._left(seal):
                seal.move("returned" if seal.state == "orphaned" else "revoked")
                return True
            if seal.state == "fencing" and not seal.ended:
                seal.ended, seal.deadline = True, self.now + PROOF_TIMEOUT
                return True
        return self._judge_all()

    def _judge_all(self) -> bool:
        changed = [self._judge(c) for c in self.conflicts if c.result is None]
        return any(changed)

    def _judge(self, conflict: Conflict) -> bool:
        met = self._met(conflict)
        courteous = [seal for seal in met if seal.state == "courtesy"]
        busy = [s for s in met if s.overdue or s.state == "fence-failed"]
        refusing = [s for s in met if s.conflict == "refuse" and s not in busy]
        if not met:
            conflict.result = "passed"
            return True
        if refusing or busy:
            conflict.result = "ETXTBSY" if refusing else "EBUSY"
            for seal in courteous:
                seal.move("expired")
            return True
        for seal in courteous:
            seal.move("expired")
            return True
        changed = False
        for seal in met:
            before = (seal.seqid, seal.deadline, seal.wanted)
            if seal.state == "orphaned" and seal.deadline is None:
                seal.deadline = self.now + seal.grace
            elif seal.state in ("granted", "active", "recalled"):
                self._recall(seal, self._wanted(seal, conflict), None)
            changed = changed or before != (seal.seqid, seal.deadline, seal.wanted)
        return changed

    @staticmethod
    def _wanted(seal: Seal, conflict: Conflict) -> tuple[int, int]:
        if seal.kind == "exclusive":
            return (seal.start, seal.end)
        return (max(seal.start, conflict.start), min(seal.end, conflict.end))
