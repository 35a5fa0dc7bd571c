"""Forgetting: what is over and old, or more than there is room for, a little at a time.

Nothing of a live seal is ever deleted: neither its row nor its transitions, conflicts, drifts or
map. The audit trail is cut from its start, whatever it tells of.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sealsvc.registry import chain, schema
from sealsvc.registry.archive import Archive

_STEP = 500  # rows of a table
_VACUUM = 256  # pages
_DAY = 86400.0
_CATCHING_UP = 1.0
_CLOCK = "clock"  # the mark of retention's time

_LIVE = "SELECT 1 FROM seals WHERE ended_at IS NULL AND id"

# Each takes the time before which all is old, and _STEP.
_DELETIONS = (
    "DELETE FROM transitions WHERE (seal, seqid) IN (SELECT seal, seqid FROM transitions t"
    f" WHERE time < ? AND NOT EXISTS ({_LIVE} = t.seal) ORDER BY time LIMIT ?)",
    "DELETE FROM conflicts WHERE number IN (SELECT number FROM conflicts c WHERE time < ?"
    f" AND NOT EXISTS ({_LIVE} IN (SELECT seal FROM conflict_seals WHERE conflict = c.number))"
    " ORDER BY time LIMIT ?)",
    "DELETE FROM drifts WHERE number IN (SELECT number FROM drifts d"
    f" WHERE time < ? AND NOT EXISTS ({_LIVE} = d.seal) ORDER BY time LIMIT ?)",
    "DELETE FROM refusals WHERE number IN"
    " (SELECT number FROM refusals WHERE time < ? ORDER BY time LIMIT ?)",
    "DELETE FROM alarms WHERE number IN"
    " (SELECT number FROM alarms WHERE time < ? ORDER BY time LIMIT ?)",
    # The newest says how the service runs now.
    "DELETE FROM configurations WHERE number IN (SELECT number FROM configurations"
    " WHERE time < ? AND number < (SELECT max(number) FROM configurations) LIMIT ?)",
    "DELETE FROM seals WHERE number IN"
    " (SELECT number FROM seals WHERE ended_at < ? ORDER BY ended_at LIMIT ?)",
)


class Retention:
    """`days` is how long what is over is kept, `most` what the directory may take in bytes.
    `alarm(reason)` is called when what is deleted turns out not to be what was written."""

    def __init__(
        self,
        directory: Path,
        archive: Archive,
        days: float,
        most: int,
        alarm: Callable[[str], None],
    ) -> None:
        self._directory, self._archive, self._alarm = directory, archive, alarm
        self._age, self._most = days * _DAY, most
        # What _now() said last, and the CLOCK_BOOTTIME then.
        self._clock: tuple[float, float] | None = None

    def step(self, connection: sqlite3.Connection) -> bool:
        """A bounded piece of work; True when there is more. Raises OSError or sqlite3.Error."""
        now = self._now(connection)
        old = now - self._age
        deleted = self._delete(connection, old, trail=old)
        crowded = self._used(connection) > self._most
        if crowded and not deleted:
            # Of the trail whatever comes first: the clock may have been wrong.
            part = self._oldest_part(connection, now)
            deleted = self._delete(connection, part, trail=math.inf)
        self._delete_segments(connection, crowded, now)
        self._delete_aside(now, crowded)
        free = _free_pages(connection)
        # As a script: execute() would free one page and stop.
        connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM})")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return bool(deleted) or free > _VACUUM

    def _now(self, connection: sqlite3.Connection) -> float:
        """Seconds of the Unix epoch, as far as they can be believed: a wall clock that is wrong for
        a while (a battery, NTP, a restored machine) must not have everything forgotten. So this
        goes on with CLOCK_BOOTTIME, catches up with a wall clock that is ahead (the machine was
        off) at _CATCHING_UP times that speed, and is never ahead of it."""
        wall, up = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        if self._clock is None:
            self._clock = min(wall, float(schema.mark(connection, _CLOCK) or wall)), up
        before, since = self._clock
        now = min(wall, before + (1 + _CATCHING_UP) * max(0.0, up - since))
        self._clock = now, up
        schema.set_mark(connection, _CLOCK, repr(now))
        return now

    def _used(self, connection: sqlite3.Connection) -> int:
        """Bytes, without what vacuuming gives back."""
        page = connection.execute("PRAGMA page_size").fetchone()[0]
        return size_of(self._directory) - int(_free_pages(connection) * page)

    def _delete(self, connection: sqlite3.Connection, before: float, *, trail: float) -> int:
        """Some of what is older than `before`, and of the audit trail than `trail`."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            deleted, wrong = chain.cut(connection, trail, _STEP)
            if wrong:
                note = chain.Chain(connection)
                note.add(time.time(), "broken", None, {"why": wrong})
                note.flush()
            for statement in _DELETIONS:
                deleted += connection.execute(statement, (before, _STEP)).rowcount
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        if wrong:
            self._alarm(f"the audit trail of {self._directory} was tampered with: {wrong}")
        return deleted

    def _oldest_part(self, connection: sqlite3.Connection, now: float) -> float:
        """A time before which about a tenth of all that is over lies."""
        oldest = connection.execute(
            "SELECT min(time) FROM (SELECT min(ended_at) AS time FROM seals UNION ALL"
            " SELECT min(time) FROM conflicts UNION ALL SELECT min(time) FROM refusals)"
        ).fetchone()[0]
        return now if oldest is None else oldest + (now - oldest) / 10

    def _delete_segments(self, connection: sqlite3.Connection, crowded: bool, now: float) -> None:
        """Those that no seal and no drift refers to any more. Segments of a database that was moved
        aside are kept as long as that is."""
        used = {
            row[0]
            for row in connection.execute(
                "SELECT map_segment FROM seals UNION SELECT old_segment FROM drifts"
                " UNION SELECT new_segment FROM drifts"
            )
        }
        for number in self._archive.segments():
            if number not in used and (crowded or self._archive.age(number, now) > self._age):
                self._archive.delete(number)

    def _delete_aside(self, now: float, crowded: bool) -> None:
        """Databases and segments that were moved aside, as if they were history."""
        aside = [*self._directory.glob("*.aside-*"), *self._archive.directory.glob("torn-*")]
        for path in sorted(aside, key=lambda path: path.stat().st_mtime):
            if crowded or path.stat().st_mtime < now - self._age:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _free_pages(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def size_of(directory: Path) -> int:
    """What lies below, in bytes."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
