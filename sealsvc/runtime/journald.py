"""Structured logs: in journald's native protocol if stderr is connected to the journal, else as
lines with key=value fields.

A record's `fields` (a dict of that name in `extra`) become journal fields, so that
`journalctl SEALSVC_SEAL=65f0...` finds everything about one seal. A context, such as the id of a
request, is added to every record.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any

from sealsvc.core.display import printable
from sealsvc.runtime.log_queue import QueueHandler, log_what_python_reports, shortened

SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}

Context = Callable[[], dict[str, Any]]


def _nothing() -> dict[str, Any]:
    return {}


class _Shown:
    """An argument of a log record. Text that others chose is escaped (core/display.py), so that it
    cannot end a line and forge another."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return printable(repr(self._value))


def message_of(record: logging.LogRecord) -> str:
    """The record's message. It has line breaks only where its format string has them."""
    if isinstance(record.args, tuple) and record.args:
        shown = (a if isinstance(a, int | float) else _Shown(a) for a in record.args)
        return str(record.msg) % tuple(shown)
    return printable(record.getMessage().rstrip("\n"))


def _field(value: object) -> str:
    """A field's value for a line: quoted if it could be read as several fields."""
    text = printable(str(value))
    return json.dumps(text, ensure_ascii=False) if re.search(r'[ ="]', text) else text


def encoded(fields: dict[str, Any]) -> bytes:
    """Fields in the journal's native protocol: NAME=value, or, for a value with line breaks, the
    name, the length (u64, little-endian, bytes) and the value."""
    parts = []
    for name, value in fields.items():
        data = str(value).encode("utf-8", "backslashreplace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)


class Journal:
    """Writes records to journald. `context` returns fields that are added to each."""

    def __init__(self, context: Context = _nothing, path: str = SOCKET) -> None:
        self._context, self._path = context, path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def encode(self, record: logging.LogRecord) -> bytes:
        fields = {
            "MESSAGE": shortened(message_of(record)),
            "PRIORITY": _PRIORITIES.get(record.levelno, 5),
            "SYSLOG_IDENTIFIER": os.path.basename(sys.argv[0]) or "sealsvc",
            "LOGGER": record.name,
            **self._context(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["TRACEBACK"] = shortened("".join(traceback.format_exception(*record.exc_info)))
        return encoded(fields)

    def write(self, data: bytes) -> None:
        """Write a record. Blocks while journald does not read. If that fails, the record goes to
        stderr."""
        try:
            self._sock.sendto(data, self._path)
        except OSError:
            _to_stderr(data)


class LineFormatter(logging.Formatter):
    def __init__(self, context: Context = _nothing) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        self._context = context

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = message_of(record)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        fields = {**self._context(), **getattr(record, "fields", {})}
        told = " ".join(f"{k.lower()}={_field(v)}" for k, v in fields.items() if v != "")
        return super().format(record) + (f" [{told}]" if told else "")


def configure(level: str, context: Context = _nothing) -> None:
    """Log to the journal if stderr is connected to it (JOURNAL_STREAM, systemd.exec(5)), else to
    stderr. Logging never blocks (log_queue.py)."""
    if _stderr_is_journal():
        journal = Journal(context)
        handler = QueueHandler(journal.encode, journal.write)
    else:
        formatter = LineFormatter(context)

        def line(record: logging.LogRecord) -> bytes:
            text = shortened(formatter.format(record))
            return text.encode("utf-8", "backslashreplace") + b"\n"

        handler = QueueHandler(line, _to_stderr)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    log_what_python_reports()


def _handlers() -> list[QueueHandler]:
    return [found for found in logging.getLogger().handlers if isinstance(found, QueueHandler)]


def dropped() -> int:
    """Number of records that were dropped instead of written."""
    return sum(handler.dropped for handler in _handlers())


def flush(seconds: float) -> None:
    """Wait until pending records are written, but at most `seconds` for each handler."""
    for handler in _handlers():
        handler.flush(seconds)


def _to_stderr(data: bytes) -> None:
    while data:
        data = data[os.write(2, data) :]


def _stderr_is_journal() -> bool:
    try:
        st = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{st.st_dev}:{st.st_ino}"
