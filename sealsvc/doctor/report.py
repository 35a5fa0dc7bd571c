"""Measure coverage: every operation against a seal of every kind, and what came of it.

For each row a fresh file is sealed by this process, as a client like any other, and the operation
runs in a second process. The first of two events decides: a recall reaches us (the operation
waits), or the operation ends. The extent map is compared through a descriptor from before.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Fence, IoMode, Kind
from sealsvc.doctor import maps, service
from sealsvc.doctor.actor import Actor, Outcome, Subject
from sealsvc.doctor.bench import Bench, Specimen, established
from sealsvc.doctor.operations import CATALOGUE, Operation
from sealsvc.doctor.unsealed import SEALED, Unsealed
from sealsvc.doctor.verdict import Result, Seen, judge, name_of
from sealsvc.protocol.seals import Recall, Return, SealInfo

_GRACE = 20.0  # seconds to return a seal in: far more than a row takes, so that no deadline acts
_SETTLE = 0.02  # seconds between two looks at whether an operation sleeps
_SETTLE_WITHIN = 1.0  # a polling thread of io_uring does not sleep for as long
_FENCELESS = ("enforcer-unavailable", "denied")  # what is said to a fence of none, among others
_RETRY_FOR = 2.0  # try-later passes when the fresh file has come to rest
_GO_ON_WITHIN = 30.0  # after the return: only what hangs takes as long


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """`map_changed`: the sealed map, while the seal was held. `errno` is a name, of the operation
    or of an operation that this system does not do."""

    operation: str
    kind: Kind
    conflict: Conflict
    enforcer: str
    result: Result
    errno: str | None = None
    map_changed: bool = False
    note: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    filesystem: str
    kernel: str
    enforcers: list[str]
    coverage: list[Row]
    verdict: str = ""  # promise.py


def measure(
    path: str,
    *,
    socket: str | None = None,
    enforcers: Sequence[str] | None = None,
    kinds: Iterable[Kind] = tuple(Kind),
    conflicts: Iterable[Conflict] = tuple(Conflict),
    operations: Iterable[str] | None = None,
    disruptive: bool = False,
    progress: Callable[[Row], None] | None = None,
    unsealed: Unsealed | None = None,
    patience: float = 1.0,
) -> Report:
    """Measure in a scratch directory below `path`. `operations` are names of the catalogue (None:
    all); `disruptive` allows those that disturb the whole file system (freeze, umount, resize).
    `progress` is called with each row. `unsealed` has what an earlier measurement of this mounted
    file system found out. `patience` multiplies every time-out: what takes its time on a slow
    machine must not be taken for what waits. Raises Refusal when no service can be measured."""
    rows: list[Row] = []
    pairs = [(kind, conflict) for kind in kinds for conflict in conflicts]
    with ExitStack() as stack:
        # The subject first: it inherits nothing, and it goes last.
        subject = Subject()
        stack.callback(subject.close)
        bench = Bench(_directory(path), stack)
        _check(bench, disruptive)
        control = stack.enter_context(service.measured(socket, enforcers, bench.directory))
        table = Table(bench, subject, control, unsealed or Unsealed(), patience)
        for operation in _chosen(operations, bench.filesystem, disruptive):
            for row in table.rows(operation, pairs):
                rows.append(row)
                if progress:
                    progress(row)
        told = service.status(control)
    return Report(
        filesystem=bench.filesystem,
        kernel=os.uname().release,
        enforcers=[enforcer.name for enforcer in told.enforcers if enforcer.available],
        coverage=rows,
    )


def expected_rows(path: str) -> int:
    """How many rows `measure` will have of everything that is not disruptive."""
    with ExitStack() as stack:
        bench = Bench(_directory(path), stack)
        return len(_chosen(None, bench.filesystem, disruptive=False)) * len(Kind) * len(Conflict)


def _directory(path: str) -> str:
    real = os.path.realpath(path)
    return real if os.path.isdir(real) else os.path.dirname(real)


def _check(bench: Bench, disruptive: bool) -> None:
    """Refuse where nothing can be compared, and where a test would shrink somebody's disk."""
    if disruptive and not bench.mount.source.startswith("/dev/loop"):
        raise Refusal(
            "bad-request",
            f"disruptive operations are measured only on a loop device, and {bench.mount.point}"
            f" is {bench.mount.source}",
        )
    try:
        with bench.specimen(CATALOGUE["pread"]) as specimen:
            maps.take(specimen.fd)
    except OSError as error:
        why = f"no extent map can be read on {bench.filesystem}: {error.strerror}"
        raise Refusal("filesystem-unsupported", why, {"type": bench.filesystem}) from error


def _chosen(names: Iterable[str] | None, filesystem: str, disruptive: bool) -> list[Operation]:
    chosen = list(CATALOGUE.values()) if names is None else [_named(name) for name in names]
    return [
        operation
        for operation in chosen
        if operation.applies_to(filesystem) and (disruptive or not operation.disruptive)
    ]


def _named(name: str) -> Operation:
    try:
        return CATALOGUE[name]
    except KeyError:
        raise Refusal("bad-request", f"there is no operation {name!r} to measure") from None


class Table:
    """Rows of one file system under one service."""

    def __init__(
        self, bench: Bench, subject: Subject, control: str, unsealed: Unsealed, patience: float
    ) -> None:
        self._bench = bench
        self._subject = subject
        self._control = control
        self._unsealed = unsealed
        self._patience = patience

    def rows(self, operation: Operation, pairs: list[tuple[Kind, Conflict]]) -> Iterator[Row]:
        useless, code = "", None
        if operation.twin:
            twin = self._unsealed.twin(self._bench, self._subject, operation)
            useless = twin.why_not(operation.changes_map(self._bench.filesystem))
            code = twin.errno
        for kind, conflict in pairs:
            if useless:
                yield Row(
                    operation=operation.name,
                    kind=kind,
                    conflict=conflict,
                    enforcer="",
                    result=Result.NOT_APPLICABLE,
                    errno=name_of(code),
                    note=useless,
                )
            else:
                yield self._sealed(operation, kind, conflict)

    def _sealed(self, operation: Operation, kind: Kind, conflict: Conflict) -> Row:
        """One row. What is undone last stands first: the child goes before its route, and the
        seal, if it was not returned yet, is returned when nothing waits for it any more."""
        with ExitStack() as stack:
            specimen = stack.enter_context(self._bench.specimen(operation))
            client = stack.enter_context(Client(self._control, timeout=30.0 * self._patience))
            routes = stack.enter_context(ExitStack())
            if operation.early:
                routes.enter_context(established(specimen, operation.route))
            holding = Holding(client, specimen.fd, self._patience)
            stack.callback(holding.give_back)
            actor = stack.enter_context(_playing(self._subject, operation, specimen))
            try:
                seal = holding.take(operation, kind, conflict)
            except Refusal as refusal:
                return _refused_at_grant(operation, kind, conflict, refusal)
            before = maps.take(specimen.fd)
            if not operation.early:
                routes.enter_context(established(specimen, operation.route))
            seen = _observe(operation, holding, actor, before)
        result, note = judge(seen)
        return Row(
            operation=operation.name,
            kind=kind,
            conflict=conflict,
            enforcer="+".join(seal.enforcers),
            result=result,
            errno=name_of(seen.errno),
            map_changed=seen.changed,
            note=note,
        )


@contextmanager
def _playing(subject: Subject, operation: Operation, specimen: Specimen) -> Iterator[Actor]:
    with subject.play(operation, specimen.scene) as actor:
        failed = actor.prepare()
        if failed:
            raise Refusal("internal", f"{operation.name} worked on the twin, then: {failed.detail}")
        yield actor


def _refused_at_grant(
    operation: Operation, kind: Kind, conflict: Conflict, refusal: Refusal
) -> Row:
    return Row(
        operation=operation.name,
        kind=kind,
        conflict=conflict,
        enforcer="",
        result=Result.REFUSED,
        errno=name_of(refusal.row.errno),
        note=f"at grant: {refusal.code}",
    )


class Holding:
    """The doctor as a holder: one descriptor, one seal. `patience` is that of `measure`."""

    def __init__(self, client: Client, fd: int, patience: float) -> None:
        self.client = client
        self.fd = fd
        self.patience = patience
        self.seal: SealInfo | None = None

    def take(self, operation: Operation, kind: Kind, conflict: Conflict) -> SealInfo:
        deadline = time.monotonic() + _RETRY_FOR * self.patience
        while True:
            try:
                self.seal = self._ask(operation, kind, conflict)
                return self.seal
            except Refusal as refusal:
                if refusal.code != "try-later" or time.monotonic() > deadline:
                    raise
                time.sleep(min(refusal.retry_after or 0.05, 0.5))

    def _ask(self, operation: Operation, kind: Kind, conflict: Conflict) -> SealInfo:
        """Leases and pins keep no seal without a fence; nobody should be signalled without need."""
        try:
            return self._ask_with(Fence.NONE, operation, kind, conflict)
        except Refusal as refusal:
            if conflict is not Conflict.WAIT or refusal.code not in _FENCELESS:
                raise
        return self._ask_with(Fence.SIGNAL, operation, kind, conflict)

    def _ask_with(
        self, fence: Fence, operation: Operation, kind: Kind, conflict: Conflict
    ) -> SealInfo:
        reply = self.client.grant(
            [self.fd],
            offset=SEALED.offset,
            length=SEALED.length,
            iomode=IoMode.READ if operation.sole_reader else IoMode.RW,
            kind=kind,
            conflict=conflict,
            fence=fence,
            grace=_GRACE * self.patience,
            tag="doctor",
        )
        for fd in reply.fds:
            os.close(fd)
        return reply.seal

    @property
    def pinned(self) -> bool:
        return self.seal is not None and "pin" in self.seal.enforcers

    def recalled(self) -> bool:
        """Whether a recall of our seal has arrived; does not wait."""
        assert self.seal is not None
        pushes = self.client.pushes(timeout=0)
        return any(isinstance(push, Recall) and push.seal == self.seal.id for push in pushes)

    def give_back(self) -> str:
        """Returns why the return was refused, or nothing. The file is closed first, as a holder
        must: else another process that has it open and maps it could have that from us."""
        if self.seal is None:
            return ""
        seal, self.seal = self.seal, None
        self._close()
        try:
            self.client.call(Return, seal=seal.id)
        except Refusal as refusal:
            return refusal.code
        return ""

    def _close(self) -> None:
        """The number stays taken, for its owner to close."""
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(nothing, self.fd, inheritable=False)
        os.close(nothing)


def _first_event(holding: Holding, actor: Actor, timeout: float) -> bool:
    """Wait until the operation ended, or our seal is recalled; true for a recall."""
    poller = select.poll()
    poller.register(holding.client, select.POLLIN)
    poller.register(actor, select.POLLIN)
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        ready = {fd for fd, _ in poller.poll(left * 1000)}
        if holding.client.fileno() in ready and holding.recalled():
            return True
        if actor.fileno() in ready:
            return holding.recalled()
    return False


def _settled(actor: Actor, timeout: float) -> Outcome | None:
    """The outcome of an operation that does not wait for us. One that does sleeps, twice in a row:
    on a busy machine, what has not ended may only not have run."""
    deadline = time.monotonic() + timeout
    asleep = actor.asleep()
    while (outcome := actor.outcome(_SETTLE)) is None and time.monotonic() < deadline:
        before, asleep = asleep, actor.asleep()
        if before and asleep:
            break
    return outcome or actor.outcome(0)


def _observe(operation: Operation, holding: Holding, actor: Actor, before: maps.Snapshot) -> Seen:
    actor.go()
    recalled = _first_event(holding, actor, operation.timeout * holding.patience)
    outcome = _settled(actor, _SETTLE_WITHIN * holding.patience)
    if outcome is None and holding.pinned:
        # Looking would wait as the operation does, with the file's lock held (docs/pin.md).
        return _after_return(Seen(ended=False, recalled=recalled, changed=False), holding, actor)
    changed = not maps.same(before, maps.take(holding.fd), SEALED)
    if outcome is not None:
        return Seen(
            ended=True,
            recalled=recalled,
            changed=changed,
            failed=outcome.failed,
            errno=outcome.errno,
            detail=outcome.detail,
        )
    return _after_return(Seen(ended=False, recalled=recalled, changed=changed), holding, actor)


def _after_return(waited: Seen, holding: Holding, actor: Actor) -> Seen:
    kept = holding.give_back()
    outcome = actor.outcome(_GO_ON_WITHIN)
    return Seen(
        ended=False,
        recalled=waited.recalled,
        changed=waited.changed,
        went_on=outcome is not None,
        failed=bool(outcome and outcome.failed),
        errno=outcome.errno if outcome else None,
        detail=f"the return was refused: {kept}" if kept else outcome.detail if outcome else "",
    )
