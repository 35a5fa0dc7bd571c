"""What is recorded: entries as the event loop queues them, and how each becomes rows.

Every entry also becomes one of the audit trail.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from typing import Any, NamedTuple

from sealsvc.core import states
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import Drift, Operation, State
from sealsvc.protocol.seals import SealInfo
from sealsvc.registry.chain import canonical, text
from sealsvc.registry.place import Place

_OVER = {str(state) for state in State if state not in states.LIVE}

_RESTARTED = "not live after a restart of the machine"
_NOT_RECORDED = "its end was not recorded"


class Entry(NamedTuple):
    """`data` goes into the audit trail, `maps` (each with its seal's id) to the archive. None of it
    is changed by anybody after it was queued."""

    time: float
    kind: str
    seal: str | None
    data: dict[str, Any]
    seals: tuple[SealInfo, ...] = ()
    maps: tuple[tuple[str, ExtentMap], ...] = ()
    number: int = 0  # in a run of the service; 0: of no service

    @property
    def map_bytes(self) -> int:
        """Bytes of maps that it alone keeps alive: live seals have theirs anyway."""
        return 0 if self.kind == "present" else sum(map.nbytes for _, map in self.maps)


class Presence:
    """The seals that are known to live, while the service tells all there are part by part."""

    def __init__(self) -> None:
        self.live: set[str] | None = None

    def told(self, entry: Entry) -> set[str] | None:
        """All of them, with the last part; None before, and when the beginning is missing."""
        if not entry.data.get("part"):
            self.live = set()
        if self.live is None:
            return None
        self.live.update(seal.id for seal in entry.seals)
        if not entry.data.get("last", True):
            return None
        live, self.live = self.live, None
        return live


class Rows:
    """Writes into the tables of one connection, within its transaction. `boot` is the boot id;
    `present` has the seals of a telling of all that live, from its first part to its last (None:
    none is under way)."""

    def __init__(
        self, connection: sqlite3.Connection, boot: str, present: Presence | None = None
    ) -> None:
        self.connection, self.boot = connection, boot
        self.present = present or Presence()

    def unarchived(self, entry: Entry) -> list[int]:
        """The indices of those of the entry's maps that the archive does not have yet."""
        if entry.kind == "drift":
            return [*range(len(entry.maps))]
        known = "SELECT 1 FROM seals WHERE id = ? AND map_segment IS NOT NULL"
        return [
            at
            for at, (seal, _) in enumerate(entry.maps)
            if not self.connection.execute(known, (seal,)).fetchone()
        ]

    def write(self, entry: Entry, places: dict[int, Place]) -> None:
        """`places` are those of the entry's maps, by index, that are in the archive now."""
        if apply := _APPLY.get(entry.kind):
            apply(self, entry, places)


def audited(entry: Entry) -> dict[str, Any]:
    """What the audit trail says of an entry: its data, and digests that bind the maps to it."""
    if entry.kind not in ("granted", "drift"):
        return entry.data
    return {**entry.data, "maps": [digest(map) for _, map in entry.maps]}


def digest(map: ExtentMap) -> str:
    """SHA-256 of a map's rows, in hex."""
    return hashlib.sha256(map.tobytes()).hexdigest()


def _granted(rows: Rows, entry: Entry, places: dict[int, Place]) -> None:
    (seal,) = entry.seals
    if rows.present.live is not None:
        rows.present.live.add(seal.id)
    _insert_seal(rows, seal, entry.data["asker"], places.get(0))
    rows.connection.execute(
        "INSERT OR IGNORE INTO transitions VALUES (?, ?, ?, ?, ?, ?)",
        (seal.id, seal.seqid, entry.time, State.REQUESTED, seal.state, ""),
    )


def _insert_seal(
    rows: Rows, seal: SealInfo, asker: dict[str, int] | None, place: Place | None
) -> None:
    """Or, when it is there, only bring it up to date."""
    holder, asker = seal.holder, asker or {}
    row = {
        "id": seal.id,
        "boot": rows.boot,
        "device": seal.file.device,
        "inode": seal.file.inode,
        "generation": seal.file.generation,
        "path": text(seal.path),
        "filesystem": seal.filesystem,
        "offset": seal.range.offset,
        "length": seal.range.length,
        "effective_offset": seal.effective.offset,
        "effective_length": seal.effective.length,
        "kind": seal.kind,
        "iomode": seal.iomode,
        "conflict": seal.conflict,
        "fence": seal.fence,
        "holder_pid": holder.pid,
        "holder_start": holder.start_time,
        "holder_uid": holder.uid,
        "holder_comm": text(holder.comm),
        "asker_pid": asker.get("pid"),
        "asker_uid": asker.get("uid"),
        "tag": text(seal.tag),
        "enforcers": canonical(seal.enforcers),
        "granted_at": seal.granted_at,
        "state": seal.state,
        "seqid": seal.seqid,
        "reason": text(seal.reason),
    }
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    rows.connection.execute(
        f"INSERT INTO seals ({names}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET"
        " state = excluded.state, seqid = excluded.seqid, reason = excluded.reason,"
        " asker_pid = coalesce(asker_pid, excluded.asker_pid),"
        " asker_uid = coalesce(asker_uid, excluded.asker_uid), ended_at = NULL",
        tuple(row.values()),
    )
    if place is not None:
        rows.connection.execute(
            "UPDATE seals SET map_segment = ?, map_index = ? WHERE id = ?",
            (place.segment, place.index, seal.id),
        )


def _state(rows: Rows, entry: Entry, _: dict[int, Place]) -> None:
    data = entry.data
    after, seqid, reason = str(data["to"]), data["seqid"], text(data["reason"])
    rows.connection.execute(
        "INSERT OR IGNORE INTO transitions VALUES (?, ?, ?, ?, ?, ?)",
        (entry.seal, seqid, entry.time, str(data["from"]), after, reason),
    )
    rows.connection.execute(
        "UPDATE seals SET state = ?, seqid = ?, reason = ?, ended_at = ? WHERE id = ?",
        (after, seqid, reason, entry.time if after in _OVER else None, entry.seal),
    )


def _conflict(rows: Rows, entry: Entry, _: dict[int, Place]) -> None:
    data = entry.data
    operation: Operation = data["operation"]
    # What waits is reported again after a restart.
    if _waiting(rows, operation) is not None:
        return
    held = str(data["verdict"]) == "held"
    number = rows.connection.execute(
        "INSERT INTO conflicts (boot, time, operation, offset, length, pid, tid, comm, uid,"
        " detail, verdict, error, ended_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            rows.boot,
            entry.time,
            operation.name,
            operation.offset,
            operation.length,
            operation.pid,
            operation.tid,
            text(operation.comm),
            operation.uid,
            text(operation.detail),
            str(data["verdict"]),
            data.get("errno", 0),
            None if held else entry.time,
        ),
    ).lastrowid
    rows.connection.executemany(
        "INSERT OR IGNORE INTO conflict_seals VALUES (?, ?)",
        [(seal, number) for seal in data["seals"]],
    )


def _conflict_ended(rows: Rows, entry: Entry, _: dict[int, Place]) -> None:
    number = _waiting(rows, entry.data["operation"])
    rows.connection.execute(
        "UPDATE conflicts SET ended_at = ?, result = ?, waited = ? WHERE number = ?",
        (entry.time, entry.data["result"], entry.data["waited"], number),
    )


def _waiting(rows: Rows, operation: Operation) -> int | None:
    """The conflict that the operation is held for: a thread waits in one at a time."""
    row = rows.connection.execute(
        "SELECT number FROM conflicts WHERE pid = ? AND tid = ? AND ended_at IS NULL"
        " AND operation = ? AND offset = ? AND length = ?",
        (operation.pid, operation.tid, operation.name, operation.offset, operation.length),
    ).fetchone()
    return row[0] if row else None


def _refused(rows: Rows, entry: Entry, _: dict[int, Place]) -> None:
    data, asker = entry.data, entry.data.get("asker") or {}
    rows.connection.execute(
        "INSERT INTO refusals (time, code, message, path, asker_pid, asker_uid, details)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            entry.time,
            data["code"],
            text(data["message"]),
            data["path"] and text(data["path"]),
            asker.get("pid"),
            asker.get("uid"),
            canonical(data["details"]),
        ),
    )


def _alarm(rows: Rows, entry: Entry, _: dict[int, Place]) -> None:
    rows.connection.execute(
        "INSERT INTO alarms (time, seal, reason) VALUES (?, ?, ?)",
        (entry.time, entry.seal, text(str(entry.data["reason"]))),
    )


def _drift(rows: Rows, entry: Entry, places: dict[int, Place]) -> None:
    drift: Drift = entry.data["drift"]
    rows.connection.execute(
        "INSERT INTO drifts (time, seal, path, logical, expected, found,"
        " old_segment, old_index, new_segment, new_index) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.time,
            drift.seal,
            text(drift.path),
            drift.logical,
            drift.expected,
            drift.found,
            *_columns(places.get(0)),
            *_columns(places.get(1)),
        ),
    )


def _started(rows: Rows, entry: Entry, _: dict[int, Place]) -> None:
    rows.connection.execute(
        "INSERT INTO configurations (time, boot, config, enforcers) VALUES (?, ?, ?, ?)",
        (
            entry.time,
            rows.boot,
            canonical(entry.data["config"]),
            canonical(entry.data["enforcers"]),
        ),
    )


def _present(rows: Rows, entry: Entry, places: dict[int, Place]) -> None:
    """All seals that live are named: what else was thought to live has ended unseen."""
    for seal in entry.seals:
        _insert_seal(rows, seal, None, None)
    rows.connection.executemany(
        "UPDATE seals SET map_segment = ?, map_index = ? WHERE id = ?",
        [(place.segment, place.index, entry.maps[at][0]) for at, place in places.items()],
    )
    live = rows.present.told(entry)
    if live is None:
        return
    recorded = rows.connection.execute("SELECT id, boot FROM seals WHERE ended_at IS NULL")
    rows.connection.executemany(
        "UPDATE seals SET ended_at = ?, reason = ? WHERE id = ?",
        [
            (entry.time, _NOT_RECORDED if boot == rows.boot else _RESTARTED, seal)
            for seal, boot in recorded.fetchall()
            if seal not in live
        ],
    )
    # What waits in this boot is reported again, and what does not ends with it.
    rows.connection.execute(
        "UPDATE conflicts SET ended_at = ? WHERE ended_at IS NULL AND boot <> ?",
        (entry.time, rows.boot),
    )


def _columns(place: Place | None) -> tuple[int | None, int | None]:
    return (place.segment, place.index) if place else (None, None)


_APPLY: dict[str, Callable[[Rows, Entry, dict[int, Place]], None]] = {
    "granted": _granted,
    "present": _present,
    "state": _state,
    "conflict": _conflict,
    "conflict-ended": _conflict_ended,
    "refused": _refused,
    "alarm": _alarm,
    "drift": _drift,
    "started": _started,
}
