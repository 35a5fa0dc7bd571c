"""The one thread that writes the registry. What it waits for, nobody else waits for.

Entries come through a bounded queue and are written in batches, each a transaction. A batch that
cannot be written is kept and tried again, with pauses; meanwhile the queue fills, and what it has
no room for is counted as lost.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sealsvc.registry import chain, schema
from sealsvc.registry.archive import Archive
from sealsvc.registry.entries import Entry, Presence, Rows, audited
from sealsvc.registry.health import Health
from sealsvc.registry.place import Place
from sealsvc.registry.retention import Retention

log = logging.getLogger(__name__)

_NOWHERE = (0, 0)
_BATCH = 512
_LINGER = 0.25  # seconds from the first entry of a batch to its writing
_RETENTION_PAUSE = 60.0  # seconds
_BUSY_PATIENCE = 2.0  # seconds
_BYTES_OF_MAPS = 64 << 20  # queued; beyond it entries are queued without theirs

_WRITTEN = "written"  # the mark: run and number of the last entry

_DATABASE, _ARCHIVE, _QUEUE, _RETENTION = "database", "archive", "queue", "retention"


class _Busy(Exception):
    """Another service has the directory."""


class Writer:
    """`put` is for one thread, the counters are for all. `run` names a run of the service: entries
    of one that have a number are written once, however often they are put. `settled(number)` is
    called when those up to a number are written or given up. `retry` is the longest pause before
    what failed is tried again, and how long all must be well before that is told; seconds."""

    def __init__(
        self,
        directory: Path,
        boot: str,
        run: str,
        archive: Archive,
        retention: Retention,
        alarm: Callable[[str], None],
        recovered: Callable[[int], None],
        settled: Callable[[int], None],
        most: int,
        retry: float,
    ) -> None:
        self._directory, self._boot, self._service_run = directory, boot, run
        self._on_settled = settled
        self._archive, self._retention = archive, retention
        self._health = Health(alarm, recovered, quiet=retry)
        self._most, self._retry = most, retry
        self._queue: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        # Each is changed by one thread alone, and so needs no lock.
        self._queued = self._overflowed = self._bytes_in = 0  # put's
        self._settled = self._dropped = self._bytes_out = 0  # the writer's
        self._connection: sqlite3.Connection | None = None
        self._checked = False
        self._place = _NOWHERE  # device and inode of the database that was opened last
        self._lock = -1
        self._batch: list[Entry] = []
        self._notes: list[Entry] = []  # our own, to be written before the next batch
        self._places: list[dict[int, Place]] | None = None  # of the batch, once it is archived
        self._present = Presence()
        self._busy_since: float | None = None
        self._suspected, self._suspected_at = threading.Event(), -_RETENTION_PAUSE
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)

    # On the event loop

    def start(self) -> None:
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Never blocks, does no I/O, and does not fail."""
        if self.lag >= self._most or self._closing.is_set():
            self._overflowed += 1
            if not (self._health.has(_QUEUE) or self._closing.is_set()):
                self._health.trouble(_QUEUE, f"{self._most} events wait", self.lost - 1)
            return
        if entry.maps:
            size = entry.map_bytes
            if self._bytes_in - self._bytes_out + size > _BYTES_OF_MAPS and self.lag:
                entry, size = entry._replace(maps=()), 0
            self._bytes_in += size
        self._queued += 1
        self._queue.put(entry)

    @property
    def lag(self) -> int:
        """Entries that wait to be written."""
        return self._queued - self._settled

    @property
    def lost(self) -> int:
        """Entries that never will be."""
        return self._overflowed + self._dropped

    @property
    def troubles(self) -> list[str]:
        """Why it is not written right now; empty when it is."""
        return self._health.reasons

    def suspect(self) -> None:
        """Have every page of the database checked soon, as at its opening; on any thread. Once in
        _RETENTION_PAUSE: it takes seconds for a large one."""
        now = time.monotonic()
        if now - self._suspected_at >= _RETENTION_PAUSE:
            self._suspected_at = now
            self._suspected.set()
            self._queue.put(None)

    def close(self, timeout: float) -> bool:
        """Write what waits, for at most `timeout` seconds; what is left then is lost, and so is
        what is put later. False when the thread hangs."""
        self._closing.set()
        self._queue.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # On the writer's thread

    def _run(self) -> None:
        due, pause = 0.0, 0.0
        while not (self._closing.is_set() and not self.lag):
            if not self._batch:
                self._take(self._patience(due, pause))
            if self._attempt():
                pause = 0.0
            elif self._closing.is_set():
                self._give_up()
            else:
                pause = min(self._retry, pause * 2 or self._retry / 16)
                self._closing.wait(pause)
            if time.monotonic() >= due and not self._closing.is_set():
                due = time.monotonic() + (0.0 if self._tidy() else _RETENTION_PAUSE)
        self._finish()

    def _patience(self, due: float, pause: float) -> float:
        """Seconds to wait for entries."""
        if pause or self._notes:
            return 0.0
        wait = max(0.0, due - time.monotonic())
        return min(wait, self._retry) if self._health.troubled else wait

    def _take(self, timeout: float) -> None:
        """Wait for entries, and take as many as make a batch."""
        self._batch, self._notes = self._notes, []
        with suppress(queue.Empty):
            entry = self._queue.get(timeout=timeout) if timeout else self._queue.get_nowait()
            self._linger()
            while True:
                if entry is not None:
                    self._batch.append(entry)
                if len(self._batch) >= _BATCH:
                    return
                entry = self._queue.get_nowait()

    def _linger(self) -> None:
        """Whoever is granted a seal right now should not have to share the interpreter with us."""
        until = time.monotonic() + min(_LINGER, self._retry)
        full = min(_BATCH, self._most // 4)
        while self.lag < full and time.monotonic() < until and not self._closing.wait(0.02):
            pass

    def _attempt(self) -> bool:
        """Write the batch. False when it is to be tried again."""
        try:
            if self._suspected.is_set():
                self._suspected.clear()
                self._checked = False
                self._shut()
            connection = self._open()
            if self._batch and not self._in_place():
                self._taken_away()
                return False
            defects = self._write(connection) if self._batch else 0
        except _Busy as error:
            # That of a service which was just ended writes what it still has.
            self._busy_since = self._busy_since or time.monotonic()
            if time.monotonic() - self._busy_since >= _BUSY_PATIENCE:
                self._trouble(_DATABASE, str(error))
        except schema.Foreign as error:
            self._move_aside(str(error))
        except sqlite3.Error as error:
            if schema.is_damage(error):
                self._move_aside(str(error))
            elif not schema.is_busy(error):  # else it passes, or the queue becomes full
                full = schema.is_full(error)
                self._fail(f"{self._directory / schema.NAME}: {error}", shut=not full)
        except OSError as error:
            self._fail(f"{self._directory}: {error.strerror or error}")
        except Exception as error:
            log.exception("the registry's writer met a defect of its own")
            self._fail(repr(error))
            self._drop()
        else:
            if defects:
                self._fail(f"{defects} events could not be written")
                self._dropped += defects
                return self._attempt()
            self._health.well(_DATABASE)
            if self.lag < self._most // 2:
                self._health.well(_QUEUE)
            self._recover()
            return True
        return False

    def _fail(self, reason: str, *, shut: bool = True) -> None:
        self._trouble(_DATABASE, reason)
        if shut:
            self._shut()

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim()
        connection = schema.open_writer(self._directory, check=not self._checked)
        self._connection, self._checked = connection, True
        before, self._place = self._place, self._place_now()
        if before not in (_NOWHERE, self._place):
            path = self._directory / schema.NAME
            self._health.note(f"{path} is a new one: what the one before it had is not in it")
        return connection

    def _claim(self) -> None:
        """Two writers would break the chain of the audit trail."""
        if self._lock >= 0:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._directory / "lock", flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise _Busy(f"another service writes {self._directory}") from None
        self._lock, self._busy_since = fd, None
        self._archive.verify()

    def _write(self, connection: sqlite3.Connection) -> int:
        """Gives how many entries of the batch were lost because of what they are."""
        rows = Rows(connection, self._boot, self._present)
        self._skip_written(connection)
        places = self._places or self._archived(rows)
        defects = 0
        connection.execute("BEGIN IMMEDIATE")
        try:
            trail = chain.Chain(connection)
            for entry, found in zip(self._batch, places, strict=True):
                defects += not self._write_one(rows, trail, entry, found)
            trail.flush()
            if last := max((entry.number for entry in self._batch), default=0):
                schema.set_mark(connection, _WRITTEN, f"{self._service_run}:{last}")
            connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise
        self._settle()
        return defects

    def _skip_written(self, connection: sqlite3.Connection) -> None:
        """What a process before us has written, and was killed before it could say so."""
        run, _, last = (schema.mark(connection, _WRITTEN) or "").partition(":")
        if run != self._service_run or not last:
            return
        written = [entry for entry in self._batch if 0 < entry.number <= int(last)]
        if written:
            self._settled += len(written)
            self._batch = [entry for entry in self._batch if entry not in written]
            self._on_settled(int(last))

    def _write_one(
        self, rows: Rows, trail: chain.Chain, entry: Entry, places: dict[int, Place]
    ) -> bool:
        """False when there is something wrong with the entry itself."""
        try:
            trail.add(entry.time, entry.kind, entry.seal, audited(entry))
            rows.write(entry, places)
        except sqlite3.Error as error:
            if not schema.is_defect(error):
                raise
            log.exception("the registry lost a %s of seal %s", entry.kind, entry.seal)
            return False
        except Exception:
            log.exception("the registry lost a %s of seal %s", entry.kind, entry.seal)
            return False
        return True

    def _archived(self, rows: Rows) -> list[dict[int, Place]]:
        """Where the batch's maps are in the archive; nowhere when that cannot be written, which
        keeps nothing else from being."""
        found: list[dict[int, Place]] = [{} for _ in self._batch]
        wanted = [
            (number, at)
            for number, entry in enumerate(self._batch)
            for at in rows.unarchived(entry)
        ]
        if not wanted:
            return found
        try:
            places = self._archive.append([self._batch[number].maps[at] for number, at in wanted])
        except Exception as error:
            self._trouble(_ARCHIVE, f"{self._archive.directory}: maps are not archived: {error}")
            return found
        self._health.well(_ARCHIVE)
        for (number, at), place in zip(wanted, places, strict=True):
            found[number][at] = place
        # Once is enough, however often the batch must be tried.
        self._places = found
        return found

    def _settle(self) -> None:
        self._bytes_out += sum(entry.map_bytes for entry in self._batch)
        self._settled += len(self._batch)
        last = max((entry.number for entry in self._batch), default=0)
        self._batch, self._places = [], None
        if last:
            self._on_settled(last)

    def _drop(self) -> None:
        self._dropped += len(self._batch)
        self._settle()

    def _give_up(self) -> None:
        """The service stops, and nothing can be written."""
        while self.lag:
            self._drop()
            self._take(0.0)

    def _tidy(self) -> bool:
        """Retention; True when there is more to do at once."""
        if self._connection is None:
            return False
        try:
            if not self._in_place():
                self._taken_away()
                return False
            more = self._retention.step(self._connection)
        except sqlite3.Error as error:
            if schema.is_damage(error):
                self._move_aside(str(error))
            elif not schema.is_busy(error):
                self._trouble(_RETENTION, f"nothing old can be deleted: {error}")
            return False
        except Exception as error:
            self._trouble(_RETENTION, f"nothing old can be deleted: {error!r}")
            return False
        self._health.well(_RETENTION)
        return more

    def _in_place(self) -> bool:
        try:
            return self._place_now() == self._place
        except FileNotFoundError:
            return False

    def _place_now(self) -> tuple[int, int]:
        found = (self._directory / schema.NAME).stat()
        return found.st_dev, found.st_ino

    def _taken_away(self) -> None:
        """The database, or the disk below it, is gone or another: what was written there is not in
        the one that is begun now."""
        self._fail(f"{self._directory / schema.NAME} was taken away, with all that it had")
        self._archive.close()
        self._release()
        self._checked, self._places = False, None

    def _move_aside(self, why: str) -> None:
        self._shut()
        try:
            aside = schema.move_aside(self._directory)
        except OSError as error:
            self._trouble(_DATABASE, f"{why}; it cannot be moved aside: {error.strerror}")
        else:
            self._trouble(_DATABASE, f"{why}; a new one is begun, the old is {aside}")

    def _shut(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
            schema.close_index(self._directory)

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _trouble(self, part: str, reason: str) -> None:
        self._health.trouble(part, reason, self.lost)

    def _recover(self) -> None:
        """Tell that all is well again, when it is; the gap belongs into the trail, in its place."""
        over = self._health.over(self.lost)
        if over is None:
            return
        self._notes.append(Entry(time.time(), "lost", None, over.told()))
        self._settled -= 1
        self._health.tell(over.lost)

    def _finish(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                seq, digest = chain.head(self._connection)
                log.info("the audit trail ends with entry %d, hash %s", seq, digest)
        self._shut()
        self._archive.close()
        self._release()
        if self.lost:
            log.warning("the registry lost %d events in this run", self.lost)
