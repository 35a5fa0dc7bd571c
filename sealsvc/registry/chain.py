"""The audit trail: entries in order, each bound to the one before it by a hash.

The hash of an entry is SHA-256 over the hash before it and the entry's canonical JSON (its keys
sorted, no spaces), which is kept as it was hashed and has its own number in it. The entry that
retention took last leaves its hash behind, and so does the newest.

What that proves: no entry between the two ends was changed, removed, inserted or moved by somebody
who did not compute every later hash anew. What it does not prove: that nobody with write access
did just that (there is no key), or cut off the newest entries along with the note of the newest;
against that, compare with a `head` that was noted elsewhere, such as in the log at each stop. Nor
does it prove that an entry was true, or that events which were counted as lost did not happen.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from sealsvc.protocol.history import Verification

_ORIGIN = bytes(32)

# As bytes: what was tampered with may be no text.
_ROWS = "SELECT seq, CAST(body AS BLOB), CAST(hash AS BLOB) FROM audit ORDER BY seq"

_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def canonical(value: Any) -> str:
    """JSON with sorted keys; what is no Unicode text (a path may be any bytes) is escaped."""
    try:
        return _encode(value).decode()
    except UnicodeEncodeError:
        return _encode(escaped(msgspec.to_builtins(value))).decode()


def text(value: str) -> str:
    """As it can be stored: surrogates, which stand for bytes that are no text, are escaped."""
    return value.encode("utf-8", "backslashreplace").decode()


def escaped(value: Any) -> Any:
    if isinstance(value, str):
        return text(value)
    if isinstance(value, dict):
        return {text(key): escaped(part) for key, part in value.items()}
    if isinstance(value, list):
        return [escaped(part) for part in value]
    return value


class Chain:
    """Adds to the trail, within one transaction of its connection's."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._seq, self._hash = _end(connection, "head") or (0, _ORIGIN)
        self._rows: list[tuple[int, str, bytes]] = []

    def add(self, time: float, kind: str, seal: str | None, data: Any) -> None:
        seq = self._seq + 1
        body = canonical({"seq": seq, "time": time, "kind": kind, "seal": seal, "data": data})
        self._seq, self._hash = seq, _link(self._hash, body.encode())
        self._rows.append((seq, body, self._hash))

    def flush(self) -> None:
        """Write what was added; nothing of it is there before."""
        self._connection.executemany(
            "INSERT INTO audit (seq, body, hash) VALUES (?, ?, ?)", self._rows
        )
        _note_end(self._connection, "head", self._seq, self._hash)
        self._rows.clear()


def cut(connection: sqlite3.Connection, before: float, most: int) -> tuple[int, str]:
    """Remove entries from the start of the trail, while they are older than `before` and at most
    `most`; the rest can still be verified. Gives how many, and what was wrong with them (empty:
    nothing), which nobody could find out later."""
    rows = connection.execute(f"{_ROWS} LIMIT ?", (most,)).fetchall()
    last, digest = start = _end(connection, "checkpoint") or (0, _ORIGIN)
    wrong = ""
    for seq, body, found in rows:
        time = _decoded(body).get("time")
        if isinstance(time, float) and time >= before:
            break
        wrong = wrong or _wrong(last, digest, seq, body, found)
        last, digest = seq, found
    if last == start[0]:
        return 0, ""
    removed = connection.execute("DELETE FROM audit WHERE seq <= ?", (last,)).rowcount
    _note_end(connection, "checkpoint", last, digest)
    return removed, wrong


def verify(connection: sqlite3.Connection) -> Verification:
    """Walk the whole trail, as it stood at one moment."""
    connection.execute("BEGIN")
    try:
        start = _end(connection, "checkpoint") or (0, _ORIGIN)
        head = _end(connection, "head") or start
        return _walk(start, head, connection.execute(_ROWS))
    finally:
        connection.execute("ROLLBACK")


def head(connection: sqlite3.Connection) -> tuple[int, str]:
    """The newest entry's number and hash: to be noted where nobody who can write here can write."""
    seq, digest = _end(connection, "head") or (0, _ORIGIN)
    return seq, digest.hex()


def _walk(
    start: tuple[int, bytes], head: tuple[int, bytes], rows: Iterable[tuple[int, bytes, bytes]]
) -> Verification:
    last, digest = start
    for seq, body, found in rows:
        if wrong := _wrong(last, digest, seq, body, found):
            return _verdict(start, last, digest, last + 1, wrong)
        last, digest = seq, found
    if (last, digest) != head:
        return _verdict(start, last, digest, last + 1, f"entries {last + 1} to {head[0]} are gone")
    return _verdict(start, last, digest, None, "")


def _wrong(last: int, digest: bytes, seq: int, body: bytes, found: bytes) -> str:
    """Why an entry does not follow the one before it; empty when it does."""
    if seq != last + 1:
        return f"entry {last + 1} is missing"
    if _link(digest, body) != found:
        return f"entry {seq} is not what was hashed"
    if _decoded(body).get("seq") != seq:
        return f"entry {seq} carries another number"
    return ""


def _verdict(
    start: tuple[int, bytes], last: int, digest: bytes, bad: int | None, why: str
) -> Verification:
    return Verification(
        intact=bad is None,
        first=start[0] + 1,
        last=last,
        first_bad=bad,
        why=why,
        head=digest.hex(),
    )


def _link(before: bytes, body: bytes) -> bytes:
    return hashlib.sha256(before + body).digest()


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return _decode(body)
    except msgspec.DecodeError:
        return {}


def _end(connection: sqlite3.Connection, which: str) -> tuple[int, bytes] | None:
    row = connection.execute(
        "SELECT seq, CAST(hash AS BLOB) FROM audit_ends WHERE which = ?", (which,)
    ).fetchone()
    return (row[0], row[1]) if row else None


def _note_end(connection: sqlite3.Connection, which: str, seq: int, digest: bytes) -> None:
    connection.execute(
        "INSERT INTO audit_ends VALUES (?, ?, ?)"
        " ON CONFLICT (which) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
        (which, seq, digest),
    )
