"""Recovery: a new service takes over the seals of the previous one in their states, without
interrupting their enforcement.

The order matters. First the enforcers take over what they still have in force, and release what
belongs to no seal (a grant that was cut off, an end that was recorded but not carried out). Then
the seals are entered in the table. Then recalls, fences and proofs that were under way continue.
Last, operations that wait in the kernel are reported again. This module does the first of these.
"""

from __future__ import annotations

import gc
import logging
import os
from dataclasses import dataclass

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Holder, Kind
from sealsvc.enforce.base import Guard, Hold, Holds, RecoveredGuard, Verdict
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle import journal, seals
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux import processes
from sealsvc.linux.processes import Process
from sealsvc.runtime import faults

log = logging.getLogger(__name__)

JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """The recovered seals. `torn` are those of `seals` for which at least one of their enforcers
    has no guard in force any more."""

    seals: list[Seal]
    torn: list[Seal]


def reclaim(keeper: Keeper, enforcers: EnforcerSet) -> Reclaimed:
    """Take over the seals of the journal that the keeper holds. Raises Refusal
    `enforcer-unavailable` when an enforcer that keeps one of them cannot be used, ValueError when
    another, incompatible version wrote the journal, and OSError."""
    # With very many seals the garbage collector would traverse all of them repeatedly.
    gc.disable()
    try:
        return _reclaim(keeper, enforcers)
    finally:
        gc.freeze()
        gc.enable()


def _reclaim(keeper: Keeper, enforcers: EnforcerSet) -> Reclaimed:
    kept = keeper.kept()
    try:
        records = journal.read(kept[JOURNAL]) if JOURNAL in kept else []
        holds = _take_over(records, enforcers, kept)
        faults.point("start:taken-over")
        _drop_strays(keeper, records, kept)
    finally:
        for fd in kept.values():
            os.close(fd)
    result = Reclaimed([], [])
    holders = _Holders()
    for record in records:
        own = [holds[name].get(record.token) for name in record.enforcers]
        seal = _seal(record, holders.of(record.holder), [hold for hold in own if hold is not None])
        result.seals.append(seal)
        if None in own and not _is_in_a_ring(record):
            result.torn.append(seal)
    holders.close()
    seals.reserve_tokens(record.token for record in records)
    return result


def _is_in_a_ring(record: journal.Granted) -> bool:
    """Whether the seal's guard is a slot of a ring: rings/registrations.py recovers it from there,
    no enforcer has it."""
    return record.place is not None and record.place.parent != 0


class _Holders:
    """The processes of holders. Each is looked for once, however many seals it has."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Process] = {}

    def of(self, holder: Holder) -> Process:
        key = (holder.pid, holder.start_time)
        if key not in self._found:
            self._found[key] = processes.again(holder)
        return self._found[key].share()

    def close(self) -> None:
        for process in self._found.values():
            process.close()


def _take_over(
    records: list[journal.Granted], enforcers: EnforcerSet, kept: dict[str, int]
) -> dict[str, dict[int, Hold]]:
    known = {name for record in records for name in record.enforcers}
    if missing := known - {enforcer.name for enforcer in enforcers.available}:
        why = "; ".join(
            f"{name}: {enforcers.reasons.get(name, 'enforcers.use does not name it')}"
            for name in sorted(missing)
        )
        raise Refusal(
            "enforcer-unavailable",
            f"seals are kept by enforcers that cannot be used ({why}): put that right, or let the"
            " seals go with `sealsvc release --all`",
            {"enforcers": sorted(missing)},
        )
    holds: dict[str, dict[int, Hold]] = {name: {} for name in known}
    for enforcer in enforcers.available:
        claims = [
            _claim(record)
            for record in records
            if enforcer.name in record.enforcers and not _is_in_a_ring(record)
        ]
        holds[enforcer.name] = enforcer.reclaim(claims, kept)
    return holds


def _claim(record: journal.Granted) -> RecoveredGuard:
    exclusive = record.request.kind is Kind.EXCLUSIVE
    verdict = Verdict.WAIT if record.request.conflict is Conflict.WAIT else Verdict.REFUSE
    watch = 0
    if record.place is not None and record.place.watched:
        verdict, watch = Verdict.WATCH, record.place.key
    guard = Guard(
        record.token, record.effective, record.holder.pid, exclusive, verdict, watch=watch
    )
    return RecoveredGuard(record.file, record.filesystem, record.enforcers[0], guard)


def _drop_strays(keeper: Keeper, records: list[journal.Granted], kept: dict[str, int]) -> None:
    """Have the keeper close descriptors of seals that no record names. The name of a descriptor
    that is kept for a seal ends in a colon and the seal's token."""
    tokens = {str(record.token) for record in records}
    for name in kept:
        if ":" in name and name.rsplit(":", 1)[1] not in tokens:
            log.info("%s belongs to no seal: dropped", name)
            keeper.drop(name)


def _seal(record: journal.Granted, process: Process, holds: list[Hold]) -> Seal:
    progress = record.progress
    seal = Seal(
        map_since=0,  # so that trips from the time without a service are compared too
        token=record.token,
        id=record.id,
        request=record.request,
        file=record.file,
        path=record.path,
        filesystem=record.filesystem,
        range=record.range,
        effective=record.effective,
        map=journal.map_of(record),
        enforcers=record.enforcers,
        hold=Holds(holds),
        process=process,
        accepted_risks=record.accepted_risks,
        client=None,
        mark=record.known_by,
        state=progress.state,
        seqid=progress.seqid,
        reason=progress.reason,
        granted_at=record.granted_at,
        state_since=progress.state_since,
        deadline=progress.deadline,
        expires=progress.expires,
        recalled_at=progress.recalled_at,
        wanted=progress.wanted,
        ladder=progress.ladder,
        drifted=progress.drifted,
        place=record.place,
        asker_uid=record.asker_uid,
        digest=record.digest,
    )
    if process.pidfd < 0:
        seal.exited.set()
    return seal
