"""The record of a seal, and the table of live seals."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from sealsvc.core import extents, states
from sealsvc.core.model import (
    ByteRange,
    Conflict,
    Fence,
    FenceClass,
    FileId,
    Kind,
    Mark,
    Operation,
    RingPlace,
    State,
)
from sealsvc.core.states import Step, Transition
from sealsvc.enforce.base import Guard, Hold, Verdict
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import UNSEEN_REFERENCES, ExtentMap, ReleaseQuestion
from sealsvc.linux.processes import Process
from sealsvc.protocol.seals import Grant, LadderStep, SealInfo
from sealsvc.runtime import clock
from sealsvc.runtime.fair_map import FairMap
from sealsvc.runtime.flag import Flag

_FENCE_CLASSES = {
    Fence.NONE: FenceClass.COOPERATIVE,
    Fence.SIGNAL: FenceClass.SIGNAL,
    Fence.KILL: FenceClass.KILL,
}

REMEMBERED = 4096  # ended seals

_INSTANCE = secrets.token_hex(4)
_TOKENS = itertools.count(secrets.randbelow(1 << 40) + 1)


def new_token() -> int:
    """A number that identifies a seal's guards and the mark on its holder's description. It counts
    up from a random start, so that it is unique in this boot for all practical purposes."""
    return next(_TOKENS)


def reserve_tokens(taken: Iterable[int]) -> None:
    """Have new_token() give none of these: they belong to recovered seals."""
    global _TOKENS
    _TOKENS = itertools.count(max([next(_TOKENS), *(token + 1 for token in taken)]))


def _new_id(token: int) -> str:
    """24 hex digits: the 12 bytes of an NFSv4 stateid's `other`."""
    return f"{_INSTANCE}{token:016x}"


_lists: dict[tuple[str, ...], list[str]] = {}


def _shared(names: list[str]) -> list[str]:
    """One list for all that are equal. There are as many as combinations of enforcers, or of risks,
    are in use. Nobody changes one in place."""
    return _lists.setdefault(tuple(names), names)


class Standing(NamedTuple):
    """What Seal.move() changes. `since` is seconds since the epoch."""

    state: State
    seqid: int
    reason: str
    since: float


class SealObserver:
    """Who is told of changes of a seal, on the event loop. A method that is not overridden does
    nothing."""

    def changed(self, seal: Seal) -> None:
        """The seal's state, range or terms have changed, and the change is journalled."""

    def ended(self, seal: Seal) -> None:
        """The seal was released, or is no longer tracked. Called once."""

    def map_may_change(self, seal: Seal) -> bool:  # noqa: ARG002 (the interface)
        """Whether nobody relies on the seal's map now."""
        return False


@dataclass(slots=True, eq=False)
class Seal:
    """A seal. It is changed on the event loop only. Once it is granted, state_machine.py alone
    changes its state; fence.py and recall.py also set deadlines and what belongs to a recall.

    `deadline`, `expires` and `recalled_at` are seconds of runtime/clock.py, `granted_at` and
    `state_since` seconds since the epoch, `map_since` ns of CLOCK_MONOTONIC: the map that is
    promised now had been read by then.

    `range` is what was asked for, `effective` the whole blocks around it, which are guarded.
    `map` is the (n, 4) array of their extents (core/extents.py). `mark` identifies the holder's
    open file description. `wanted` is the part that a recall is for. `round` counts how
    often a deadline was set anew: earlier ones do not count. `place` is where a ring has the seal.
    `relocating` is true while its recall may be answered with Quiesce, `quiesced` while its holder
    does not use the map, which may change. `asker_uid` is the user that asked for it (-1: not
    known), `digest` that of its request (service/idempotency.py)."""

    token: int
    request: Grant
    file: FileId
    path: str
    filesystem: Filesystem
    range: ByteRange
    effective: ByteRange
    map: ExtentMap
    enforcers: list[str]
    hold: Hold
    process: Process
    accepted_risks: list[str]
    client: object | None  # the connection that recalls go to
    mark: Mark
    state: State = State.REQUESTED
    seqid: int = 0
    reason: str = ""
    granted_at: float = field(default_factory=time.time)
    state_since: float = field(default_factory=time.time)
    deadline: float | None = None
    expires: float | None = None
    recalled_at: float | None = None
    wanted: ByteRange | None = None
    intruder: Operation | None = None
    ladder: list[LadderStep] = field(default_factory=list)
    round: int = 0
    drifted: bool = False
    released: Flag = field(default_factory=Flag)
    exited: Flag = field(default_factory=Flag)
    observers: list[SealObserver] = field(default_factory=list)
    relocating: bool = False
    quiesced: bool = False
    map_since: int = field(default_factory=time.monotonic_ns)
    place: RingPlace | None = None
    id: str = ""
    asker_uid: int = -1
    digest: bytes = b""

    def __post_init__(self) -> None:
        self.id = self.id or _new_id(self.token)
        # Of very many seals most have the same of these.
        self.enforcers, self.accepted_risks = _shared(self.enforcers), _shared(self.accepted_risks)
        if self.effective == self.range:
            self.effective = self.range

    @property
    def live(self) -> bool:
        return self.state in states.LIVE

    @property
    def verdict(self) -> Verdict:
        """What conflicts with the seal meet by its terms, while no deadline has passed."""
        if self.place is not None and self.place.watched:
            return Verdict.WATCH
        return Verdict.WAIT if self.request.conflict is Conflict.WAIT else Verdict.REFUSE

    @property
    def guard(self) -> Guard:
        """The guard for the effective range."""
        return Guard(
            self.token,
            self.effective,
            self.process.holder.pid,
            self.request.kind is Kind.EXCLUSIVE,
            self.verdict,
        )

    @property
    def fence_class(self) -> FenceClass:
        return _FENCE_CLASSES[self.request.fence]

    @property
    def standing(self) -> Standing:
        """The fields that `move` changes; assign an earlier value to undo a move."""
        return Standing(self.state, self.seqid, self.reason, self.state_since)

    @standing.setter
    def standing(self, was: Standing) -> None:
        self.state, self.seqid, self.reason, self.state_since = was

    def move(self, step: Step, reason: str = "") -> Transition:
        """Change the state by the table in core/states.py and raise the seqid. Raises KeyError for
        a step that is not allowed. Only StateMachine.step() and record() call it."""
        transition = states.after(self.state, step)
        if transition.to is not self.state:
            self.state_since = time.time()
        self.state = transition.to
        self.seqid = self.seqid % 0xFFFFFFFF + 1
        self.reason = reason
        return transition

    def observe(self, observer: SealObserver) -> None:
        """Have an observer told, after those before it. Once, however often it is named."""
        if observer not in self.observers:
            self.observers.append(observer)

    def tell_changed(self) -> None:
        """Tell the observers of a change."""
        for observer in self.observers:
            observer.changed(self)

    def tell_ended(self) -> None:
        """Tell the observers of the end, and let go of them."""
        told, self.observers = self.observers, []
        for observer in told:
            observer.ended(self)

    @property
    def may_change(self) -> bool:
        """Whether nobody relies on the map now."""
        return self.quiesced or any(one.map_may_change(self) for one in self.observers)

    def change_terms(self, **changes: Any) -> None:
        """Replace fields of the grant request."""
        self.request = msgspec.structs.replace(self.request, **changes)

    @property
    def is_overdue(self) -> bool:
        """Whether the deadline has passed without a fence, and the holder has reported no progress
        since."""
        said = [step.step for step in self.ladder if step.step in ("overdue", "progress")]
        return said[-1:] == ["overdue"]

    def record_step(self, step: str, detail: str = "") -> None:
        """Append a step, with the time, to the record of the recall and fence."""
        self.ladder.append(LadderStep(step=step, time=time.time(), detail=detail))

    def resize(self, left: ByteRange) -> None:
        """Reduce the range to `left`, and the effective range and the map to its whole blocks."""
        self.range = left
        self.effective = left.rounded(self.filesystem.block_size)
        self.map = extents.clip(self.map, self.effective)

    def question(
        self, sealed: dict[int, list[ByteRange]], part: ByteRange | None = None
    ) -> ReleaseQuestion:
        """What the host needs for the proof that nothing maps the range (or `part` of it). `sealed`
        are the ranges that other seals explain, by the pid of their holder."""
        return ReleaseQuestion(
            file=self.file,
            range=part or self.effective,
            anchor=self.hold.anchor,
            apart=self.hold.apart,
            mark=self.mark,
            holder=0 if self.exited.is_set() else self.process.holder.pid,
            sealed=sealed,
            map=self.map,
            unseen=UNSEEN_REFERENCES in self.accepted_risks,
            exclusive=self.request.kind is Kind.EXCLUSIVE,
        )

    def info(self) -> SealInfo:
        """The seal as clients see it, at this moment."""
        request, now = self.request, clock.now()
        return SealInfo(
            id=self.id,
            seqid=self.seqid,
            state=self.state,
            file=self.file,
            path=self.path,
            filesystem=self.filesystem.type,
            range=self.range,
            effective=self.effective,
            iomode=request.iomode,
            kind=request.kind,
            conflict=request.conflict,
            fence=request.fence,
            grace=request.grace,
            ttl=request.ttl,
            tag=request.tag,
            require=request.require,
            enforcers=self.enforcers,
            accepted_risks=self.accepted_risks,
            holder=self.process.holder,
            extents=len(self.map),
            granted_at=self.granted_at,
            state_since=self.state_since,
            deadline_in=None if self.deadline is None else max(0.0, self.deadline - now),
            expires_in=None if self.expires is None else max(0.0, self.expires - now),
            reason=self.reason,
            fence_class=self.fence_class,
            wanted=self.wanted,
            ladder=list(self.ladder),
            owner=request.principal,
            ring=self.place,
        )


class Counts:
    """Live seals by holder (pid), by file system (device) and by user (uid), and the sealed bytes
    of each user; for limits."""

    def __init__(self) -> None:
        self.by_holder: Counter[int] = Counter()
        self.by_filesystem: Counter[int] = Counter()
        self.by_user: Counter[int] = Counter()
        self.bytes_by_user: Counter[int] = Counter()

    def add(self, seal: Seal, sign: int) -> None:
        """Add (`sign` 1) or subtract (-1) a seal."""
        holder = seal.process.holder
        for counter, key, number in (
            (self.by_holder, holder.pid, 1),
            (self.by_filesystem, seal.file.device, 1),
            (self.by_user, holder.uid, 1),
            (self.bytes_by_user, holder.uid, seal.range.length),
        ):
            counter[key] += sign * number
            if not counter[key]:
                del counter[key]


class SealTable:
    """Live seals, by id, token, file and user; and how those that ended and are remembered did."""

    def __init__(self) -> None:
        self.counts = Counts()
        self._by_id: dict[str, Seal] = {}
        self._by_token: dict[int, Seal] = {}
        self._by_file: dict[tuple[int, int], dict[str, Seal]] = {}
        self._by_user: dict[int, dict[str, Seal]] = {}
        self._ended: FairMap[str, SealInfo] = FairMap(REMEMBERED)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Seal]:
        return iter(list(self._by_id.values()))

    def add(self, seal: Seal) -> None:
        self._by_id[seal.id] = self._by_token[seal.token] = seal
        self._by_file.setdefault((seal.file.device, seal.file.inode), {})[seal.id] = seal
        self._by_user.setdefault(seal.process.holder.uid, {})[seal.id] = seal
        self.counts.add(seal, 1)

    def remove(self, seal: Seal) -> None:
        del self._by_id[seal.id], self._by_token[seal.token]
        self.counts.add(seal, -1)
        key = (seal.file.device, seal.file.inode)
        del self._by_file[key][seal.id]
        if not self._by_file[key]:
            del self._by_file[key]
        user = seal.process.holder.uid
        del self._by_user[user][seal.id]
        if not self._by_user[user]:
            del self._by_user[user]

    def end(self, seal: Seal) -> None:
        """Remove a seal that has ended, and remember it as it is now."""
        self._ended.put(seal.id, seal.info(), seal.process.holder.uid)
        self.remove(seal)

    def ended(self, seal_id: str) -> SealInfo | None:
        """A seal that has ended, as it was then; None when it is not remembered."""
        return self._ended.get(seal_id)

    def path_of(self, seal_id: str) -> str | None:
        """The path of the file of a live or remembered seal; None when it is neither."""
        seal = self._by_id.get(seal_id) or self._ended.get(seal_id)
        return seal.path if seal else None

    def owner_of(self, seal_id: str) -> int | None:
        """The uid of the holder of a live or remembered seal; None when it is neither."""
        if seal := self._by_id.get(seal_id):
            return seal.process.holder.uid
        over = self._ended.get(seal_id)
        return over.holder.uid if over else None

    def resize(self, seal: Seal, left: ByteRange) -> None:
        """Reduce a seal of the table to the range `left`."""
        self.counts.add(seal, -1)
        seal.resize(left)
        self.counts.add(seal, 1)

    def largest_holder(self) -> tuple[int, int]:
        """The pid that holds the most seals, and their number. Raises IndexError when the table is
        empty."""
        return self.counts.by_holder.most_common(1)[0]

    def of_holder(self, pid: int) -> list[Seal]:
        return [seal for seal in self._by_id.values() if seal.process.holder.pid == pid]

    def of_user(self, uid: int) -> list[Seal]:
        """The live seals that processes of the user hold."""
        return list(self._by_user.get(uid, {}).values())

    def get(self, seal_id: str) -> Seal | None:
        return self._by_id.get(seal_id)

    def of_token(self, token: int) -> Seal | None:
        return self._by_token.get(token)

    def files(self) -> list[tuple[int, int]]:
        """Device and inode of each file that has seals."""
        return list(self._by_file)

    def of_file(self, file: FileId) -> list[Seal]:
        """The live seals on the inode of `file`; generations are not compared."""
        return self.of_inode(file.device, file.inode)

    def of_inode(self, device: int, inode: int) -> list[Seal]:
        return list(self._by_file.get((device, inode), {}).values())
