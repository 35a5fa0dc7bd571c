"""What the registry is asked. Each query opens the database for reading alone and may block: they
are for worker threads. Any raises Refusal: bad-request for a cursor that is none, no-such-seal,
io-error when the registry cannot be read, try-later when it takes too long.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange, FileId
from sealsvc.protocol import codec
from sealsvc.protocol.history import (
    AuditEntry,
    AuditTrail,
    ConflictHistory,
    ConflictRecord,
    MapDifference,
    SealFilter,
    SealHistory,
    SealRecord,
    Transition,
    Transitions,
    Verification,
)
from sealsvc.registry import chain, differences, schema
from sealsvc.registry.place import Place

if TYPE_CHECKING:  # it takes mmap_ninja, which the service does without
    from sealsvc.registry.archive import Archive

_TIME_LIMIT = 10.0  # seconds a query may take
_STEPS = 100_000  # of SQLite's machine between two looks at the clock

_decode = msgspec.json.decode
# Those of a seal that are told as they stand.
_COLUMNS = frozenset(SealRecord.__struct_fields__) - {
    "enforcers", "file", "range", "effective", "mapped",
}  # fmt: skip


class _Where:
    """Conditions that all hold."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.values: list[Any] = []

    def add(self, condition: str, *values: Any) -> None:
        """Unless a value is None, which asks for any."""
        if None not in values:
            self._conditions.append(condition)
            self.values += values

    def __str__(self) -> str:
        return " AND ".join(self._conditions) or "1"


class Queries:
    """`damaged` is called, on the thread of a query, when that meets a damaged database."""

    def __init__(
        self, directory: Path, archive: Archive, damaged: Callable[[], None] = lambda: None
    ) -> None:
        self._directory, self._archive, self._damaged = directory, archive, damaged

    def history(
        self, wanted: SealFilter, after: str | None, limit: int, room: int | None = None
    ) -> SealHistory:
        """Seals, live and over, the newest first. `room`: bytes of JSON that they may take; one is
        told in any case."""
        where = _Where()
        where.add("path = ?", wanted.path and chain.text(wanted.path))
        if wanted.file is not None:
            where.add("device = ? AND inode = ?", wanted.file.device, wanted.file.inode)
        where.add("holder_pid = ?", wanted.pid)
        where.add("holder_uid = ?", wanted.uid)
        where.add("state = ?", wanted.state)
        where.add("(ended_at IS NULL OR ended_at >= ?)", wanted.since)
        where.add("granted_at <= ?", wanted.until)
        where.add("(id GLOB ? || '*' OR id GLOB '*' || ?)", wanted.part, wanted.part)
        rows, cursor = self._page("SELECT * FROM seals", where, "number", after, limit)
        seals = list(_fitting(map(_seal, rows), room))
        if len(seals) < len(rows):
            cursor = str(rows[len(seals) - 1]["number"])
        return SealHistory(seals=seals, next=cursor)

    def seal(self, seal: str) -> SealRecord:
        with self._open() as connection:
            return _seal(_row_of(connection, seal))

    def transitions(self, seal: str) -> Transitions:
        with self._open() as connection:
            _row_of(connection, seal)
            rows = connection.execute(
                "SELECT seqid, time, before, after, reason FROM transitions WHERE seal = ?"
                " ORDER BY time, seqid",
                (seal,),
            )
            return Transitions(seal=seal, transitions=[Transition(**row) for row in _dicts(rows)])

    def conflicts(
        self,
        after: str | None,
        limit: int,
        *,
        seal: str | None = None,
        pid: int | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> ConflictHistory:
        """Operations that met a seal, the newest first."""
        where = _Where()
        where.add("number IN (SELECT conflict FROM conflict_seals WHERE seal = ?)", seal)
        where.add("pid = ?", pid)
        where.add("time >= ?", since)
        where.add("time <= ?", until)
        select = (
            "SELECT *, (SELECT json_group_array(seal) FROM conflict_seals WHERE conflict = number)"
            " AS seals FROM conflicts"
        )
        rows, cursor = self._page(select, where, "number", after, limit)
        return ConflictHistory(conflicts=[_conflict(row) for row in rows], next=cursor)

    def audit(
        self,
        after: str | None,
        limit: int,
        *,
        kind: str | None = None,
        seal: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> AuditTrail:
        """Entries of the audit trail, the newest first."""
        where = _Where()
        where.add("kind = ?", kind)
        where.add("seal = ?", seal)
        where.add("time >= ?", since)
        where.add("time <= ?", until)
        select = "SELECT seq, body, hash FROM audit"
        rows, cursor = self._page(select, where, "seq", after, limit)
        return AuditTrail(entries=[_entry(row) for row in rows], next=cursor)

    def verify(self) -> Verification:
        """Walk the whole audit trail; what that proves stands in chain.py."""
        with self._open(bounded=False) as connection:
            return chain.verify(connection)

    def map_at_grant(self, seal: str) -> ExtentMap:
        """The map that was recorded when the seal was granted."""
        return self._map_and_range(seal)[0]

    def map_difference(self, seal: str, present: ExtentMap, limit: int = 100) -> MapDifference:
        """How `present`, the map of the same file now, differs from the one at the grant; at most
        `limit` changes are told."""
        recorded, sealed = self._map_and_range(seal)
        return differences.between(seal, recorded, present, sealed, limit)

    def evidence(self, seal: str) -> list[tuple[ExtentMap | None, ExtentMap | None]]:
        """For every time the seal was found drifted: the map as recorded and as found (None: not in
        the archive)."""
        with self._open() as connection:
            rows = connection.execute(
                "SELECT old_segment, old_index, new_segment, new_index FROM drifts WHERE seal = ?"
                " ORDER BY number",
                (seal,),
            ).fetchall()
        return [(self._map(seal, *row[:2]), self._map(seal, *row[2:])) for row in map(tuple, rows)]

    def _map_and_range(self, seal: str) -> tuple[ExtentMap, ByteRange]:
        with self._open() as connection:
            row = _row_of(connection, seal)
        found = self._map(seal, row["map_segment"], row["map_index"])
        if found is None:
            raise Refusal("io-error", f"the map of seal {seal} is not in the archive")
        return found, ByteRange(row["effective_offset"], row["effective_length"])

    def _map(self, seal: str, segment: int | None, index: int | None) -> ExtentMap | None:
        if segment is None or index is None:
            return None
        try:
            return self._archive.read(Place(segment, index), seal)
        except OSError as error:
            raise Refusal(
                "io-error", f"the recorded map of seal {seal} cannot be read: {error.strerror}"
            ) from None

    def _page(
        self, select: str, where: _Where, key: str, after: str | None, limit: int
    ) -> tuple[list[sqlite3.Row], str | None]:
        if after is not None:
            if not after.isdecimal() or len(after) > 18:
                raise Refusal("bad-request", f"{after!r} is not a cursor that was answered")
            where.add(f"{key} < ?", int(after))
        with self._open() as connection:
            rows = connection.execute(
                f"{select} WHERE {where} ORDER BY {key} DESC LIMIT ?", (*where.values, limit + 1)
            ).fetchall()
        more = len(rows) > limit
        return rows[:limit], str(rows[limit - 1][key]) if more else None

    @contextmanager
    def _open(self, *, bounded: bool = True) -> Iterator[sqlite3.Connection]:
        try:
            schema.refuse_holes(self._directory)
            with closing(schema.open_reader(self._directory)) as connection:
                if not schema.is_made(connection):
                    raise _not_yet()
                deadline = time.monotonic() + _TIME_LIMIT
                if bounded:
                    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
                yield connection
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
                raise Refusal(
                    "try-later", "the query takes too long: ask for less", retry_after=1.0
                ) from None
            if not (self._directory / schema.NAME).exists():
                raise _not_yet() from None
            if schema.is_damage(error):
                self._damaged()
            raise Refusal("io-error", f"the registry cannot be read: {error}") from None
        except OSError as error:
            raise Refusal("io-error", f"the registry cannot be read: {error.strerror}") from None


def _fitting(seals: Iterable[SealRecord], room: int | None) -> Iterator[SealRecord]:
    taken = 0
    for seal in seals:
        if room is not None:
            before, taken = taken, taken + len(codec.encoded(seal)) + 1
            if before and taken > room:
                return
        yield seal


def _not_yet() -> Refusal:
    text = f"there is no {schema.NAME} yet: the registry is being started, or cannot make it"
    return Refusal("try-later", text, retry_after=1.0)


def _row_of(connection: sqlite3.Connection, seal: str) -> sqlite3.Row:
    row: sqlite3.Row | None = connection.execute(
        "SELECT * FROM seals WHERE id = ?", (seal,)
    ).fetchone()
    if row is None:
        raise Refusal("no-such-seal", f"nothing is recorded of seal {seal}", {"seal": seal})
    return row


def _dicts(rows: Iterator[sqlite3.Row]) -> Iterator[dict[str, Any]]:
    return (dict(row) for row in rows)


def _seal(row: sqlite3.Row) -> SealRecord:
    return SealRecord(
        **{name: row[name] for name in _COLUMNS},
        enforcers=_decode(row["enforcers"]),
        file=FileId(row["device"], row["inode"], row["generation"]),
        range=ByteRange(row["offset"], row["length"]),
        effective=ByteRange(row["effective_offset"], row["effective_length"]),
        mapped=row["map_segment"] is not None,
    )


def _conflict(row: sqlite3.Row) -> ConflictRecord:
    fields = {name: row[name] for name in ConflictRecord.__struct_fields__}
    fields["seals"] = _decode(row["seals"])
    return ConflictRecord(**fields)


def _entry(row: sqlite3.Row) -> AuditEntry:
    body = _decode(row["body"])
    return AuditEntry(
        seq=row["seq"],
        time=body["time"],
        kind=body["kind"],
        seal=body["seal"],
        data=body["data"],
        hash=row["hash"].hex(),
    )
