"""Going on where a dead service ended: every seal in its state, its enforcement never interrupted.

The order matters: the enforcers first take over what they still have in force and let go of what
belongs to no seal (a grant that was cut off, an end that was recorded but not carried out); then
the seals are listed; then recalls, fences and proofs that were under way go on; then what waits in
the kernel is heard of.
"""

from __future__ import annotations

import gc
import logging
import os
from dataclasses import dataclass

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Kind
from sealsvc.enforce.base import Claim, Guard, Hold, Holds, Verdict
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle import journal, seals
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux import processes
from sealsvc.linux.processes import Process
from sealsvc.protocol.seals import Holder
from sealsvc.runtime import faults

log = logging.getLogger(__name__)

JOURNAL = "journal"


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """`torn` are seals that some enforcer has nothing in force for any more."""

    seals: list[Seal]
    torn: list[Seal]


def reclaim(keeper: Keeper, enforcers: EnforcerSet) -> Reclaimed:
    # Of very many seals the collector would look through all again and again, and find nothing.
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
    """Its guard is a slot of the ring's table: rings/registrations.py finds it there."""
    return record.place is not None and record.place.parent != 0


class _Holders:
    """Each holder is looked for once, however many seals it has."""

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


def _claim(record: journal.Granted) -> Claim:
    exclusive = record.request.kind is Kind.EXCLUSIVE
    verdict = Verdict.WAIT if record.request.conflict is Conflict.WAIT else Verdict.REFUSE
    watch = 0
    if record.place is not None and record.place.watched:
        verdict, watch = Verdict.WATCH, record.place.key
    guard = Guard(
        record.token, record.effective, record.holder.pid, exclusive, verdict, watch=watch
    )
    return Claim(record.file, record.filesystem, record.enforcers[0], guard)


def _drop_strays(keeper: Keeper, records: list[journal.Granted], kept: dict[str, int]) -> None:
    """Descriptors kept for a seal carry its token after the last colon."""
    tokens = {str(record.token) for record in records}
    for name in kept:
        if ":" in name and name.rsplit(":", 1)[1] not in tokens:
            log.info("%s belongs to no seal: dropped", name)
            keeper.drop(name)


def _seal(record: journal.Granted, process: Process, holds: list[Hold]) -> Seal:
    progress = record.progress
    seal = Seal(
        map_since=0,  # also for what the tripwire told while no service lived
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
