"""The database of the registry: its tables, how it is opened for writing, and what becomes of one
that cannot be used.

Times are seconds of the Unix epoch, offsets and lengths bytes, waits seconds.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

NAME = "registry.db"

_APPLICATION = 0x5EA15EA1
_VERSION = 1

# How long a statement waits for another program's lock before it fails, in milliseconds.
_PATIENCE = 250
_WAL_LIMIT = 16 << 20

_TABLES = """
CREATE TABLE seals (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    boot TEXT NOT NULL,
    device INTEGER NOT NULL, inode INTEGER NOT NULL, generation INTEGER NOT NULL,
    path TEXT NOT NULL, filesystem TEXT NOT NULL,
    offset INTEGER NOT NULL, length INTEGER NOT NULL,
    effective_offset INTEGER NOT NULL, effective_length INTEGER NOT NULL,
    kind TEXT NOT NULL, iomode TEXT NOT NULL, conflict TEXT NOT NULL, fence TEXT NOT NULL,
    holder_pid INTEGER NOT NULL, holder_start INTEGER NOT NULL, holder_uid INTEGER NOT NULL,
    holder_comm TEXT NOT NULL,
    asker_pid INTEGER, asker_uid INTEGER,
    tag TEXT NOT NULL, enforcers TEXT NOT NULL,
    granted_at REAL NOT NULL, ended_at REAL,
    state TEXT NOT NULL, seqid INTEGER NOT NULL, reason TEXT NOT NULL,
    map_segment INTEGER, map_index INTEGER
);
CREATE INDEX seals_by_path ON seals (path, number);
CREATE INDEX seals_by_file ON seals (device, inode, number);
CREATE INDEX seals_by_holder ON seals (holder_pid, number);
CREATE INDEX seals_by_segment ON seals (map_segment);
CREATE INDEX seals_by_end ON seals (ended_at);

CREATE TABLE transitions (
    seal TEXT NOT NULL, seqid INTEGER NOT NULL, time REAL NOT NULL,
    before TEXT NOT NULL, after TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (seal, seqid)
) WITHOUT ROWID;
CREATE INDEX transitions_by_time ON transitions (time);

CREATE TABLE conflicts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    boot TEXT NOT NULL, time REAL NOT NULL,
    operation TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    pid INTEGER NOT NULL, tid INTEGER NOT NULL, comm TEXT NOT NULL, uid INTEGER NOT NULL,
    detail TEXT NOT NULL,
    verdict TEXT NOT NULL, error INTEGER NOT NULL,
    ended_at REAL, result INTEGER, waited REAL
);
CREATE INDEX conflicts_by_time ON conflicts (time);
CREATE INDEX conflicts_open ON conflicts (pid, tid) WHERE ended_at IS NULL;
CREATE TABLE conflict_seals (
    seal TEXT NOT NULL, conflict INTEGER NOT NULL, PRIMARY KEY (seal, conflict)
) WITHOUT ROWID;
CREATE INDEX conflict_seals_by_conflict ON conflict_seals (conflict);
CREATE TRIGGER conflict_gone AFTER DELETE ON conflicts BEGIN
    DELETE FROM conflict_seals WHERE conflict = OLD.number;
END;

CREATE TABLE refusals (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL, path TEXT,
    asker_pid INTEGER, asker_uid INTEGER, details TEXT NOT NULL
);
CREATE INDEX refusals_by_time ON refusals (time);

CREATE TABLE alarms (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, seal TEXT, reason TEXT NOT NULL
);
CREATE INDEX alarms_by_time ON alarms (time);

CREATE TABLE drifts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL, seal TEXT NOT NULL, path TEXT NOT NULL, logical INTEGER NOT NULL,
    expected TEXT NOT NULL, found TEXT NOT NULL,
    old_segment INTEGER, old_index INTEGER, new_segment INTEGER, new_index INTEGER
);
CREATE INDEX drifts_by_seal ON drifts (seal);
CREATE INDEX drifts_by_time ON drifts (time);

CREATE TABLE configurations (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    time REAL NOT NULL, boot TEXT NOT NULL, config TEXT NOT NULL, enforcers TEXT NOT NULL
);

CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    body TEXT NOT NULL,
    hash BLOB NOT NULL,
    time REAL GENERATED ALWAYS AS (json_extract(body, '$.time')) VIRTUAL,
    kind TEXT GENERATED ALWAYS AS (json_extract(body, '$.kind')) VIRTUAL,
    seal TEXT GENERATED ALWAYS AS (json_extract(body, '$.seal')) VIRTUAL
);
CREATE INDEX audit_by_kind ON audit (kind, seq);
CREATE INDEX audit_by_seal ON audit (seal, seq);
CREATE TABLE audit_ends (
    which TEXT PRIMARY KEY, seq INTEGER NOT NULL, hash BLOB NOT NULL
) WITHOUT ROWID;
"""


# Since the first version's tables: an older one does not mind it.
_MARKS = (
    "CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
)


class Foreign(Exception):
    """The file is not a database that this version can write; the text says what it is."""


# The index of the write-ahead log (-shm) is mapped, and SQLite extends it by one byte for each page
# of memory: where the file system's blocks are smaller, a store into the rest of the page is a
# SIGBUS when the disk is full (os_unix.c, unixShmMap). So its blocks are allocated here, for a log
# of 16 MiB.
_INDEX = 32768
_ROOM = 256 << 10  # bytes that must be free before it is made

# Descriptors of the indices, by directory. Closing one drops SQLite's locks on it (fcntl(2)): only
# when no writer has it open.
_indices: dict[Path, int] = {}


def refuse_holes(directory: Path) -> None:
    """Raises OSError (ENOSPC) when the index cannot be mapped safely."""
    with suppress(FileNotFoundError):
        found = (directory / (NAME + "-shm")).stat()
        if found.st_size and found.st_blocks * 512 >= found.st_size:
            return
    room = os.statvfs(directory)
    if room.f_bavail * room.f_frsize < _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))


def _fill_index(directory: Path) -> None:
    path, before = directory / (NAME + "-shm"), _indices.get(directory)
    if before is None or not os.path.samestat(os.fstat(before), path.stat()):
        _indices[directory] = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if before is not None:
            os.close(before)
    os.posix_fallocate(_indices[directory], 0, _INDEX)


def close_index(directory: Path) -> None:
    """After the writer's connection."""
    if (fd := _indices.pop(directory, None)) is not None:
        os.close(fd)


def open_writer(directory: Path, *, check: bool = True) -> sqlite3.Connection:
    """The writer's connection; makes the database when there is none. `check` looks at every page,
    which takes seconds for a large one. Raises OSError, sqlite3.Error or Foreign."""
    path = directory / NAME
    refuse_holes(directory)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        _prepare(connection, check)
        _fill_index(directory)
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(directory: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error, also when there is no database."""
    uri = (directory / NAME).absolute().as_uri() + "?mode=ro"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def is_made(connection: sqlite3.Connection) -> bool:
    """Has the writer made its tables? They come in one transaction."""
    return bool(connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])


def _prepare(connection: sqlite3.Connection, check: bool) -> None:
    connection.execute(f"PRAGMA busy_timeout = {_PATIENCE}")
    application, version = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version")
    )
    new = not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not new and (application, version) != (_APPLICATION, _VERSION):
        raise Foreign(f"application {application:#x}, version {version}")
    if new:
        # Before the first table, or it has no effect.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    # A power cut may take the last transactions, but not the database.
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT}")
    if new:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_TABLES} PRAGMA application_id = {_APPLICATION};"
            f"PRAGMA user_version = {_VERSION}; COMMIT;"
        )
    connection.execute(_MARKS)
    if check and not new:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise Foreign(f"damaged: {found}")


def mark(connection: sqlite3.Connection, name: str) -> str | None:
    """What was noted under a name."""
    row = connection.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
    return row[0] if row else None


def set_mark(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (name, value))


def is_full(error: sqlite3.Error) -> bool:
    """Is the disk full? Then the connection is as good as before."""
    return _code(error) == sqlite3.SQLITE_FULL


def is_damage(error: sqlite3.Error) -> bool:
    """Is it the file that is at fault, so that another must take its place?"""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def is_busy(error: sqlite3.Error) -> bool:
    """Has somebody else locked it?"""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_defect(error: sqlite3.Error) -> bool:
    """Is it the statement that is at fault, so that trying again is of no use?"""
    wrong = isinstance(error, sqlite3.InterfaceError | sqlite3.ProgrammingError)
    return wrong or _code(error) in (
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_RANGE,
    )


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def move_aside(directory: Path) -> Path:
    """Give a database that cannot be used a name with the time in it. No connection may be open."""
    name = f"{NAME}.aside-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{time.time_ns() % 10**9}"
    for suffix in ("-wal", "-shm", ""):
        part = directory / (NAME + suffix)
        if part.exists():
            part.rename(directory / (name + suffix))
    return directory / name
