"""Logs for the journal: fields, and lines that nothing can forge."""

from __future__ import annotations

import logging
import socket
import struct
from pathlib import Path

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.runtime.journald import Journal, LineFormatter, encoded


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("sealsvc.api", logging.WARNING, "", 0, message, (), None)
    made.fields = fields
    return made


def test_fields_reach_the_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal_of = Journal(lambda: {"SEALSVC_REQUEST": "abc"}, path)
        journal_of.write(journal_of.encode(record("changed", SEALSVC_SEAL="65f0")))
        told = journal.recv(65536).split(b"\n")
        journal_of._sock.close()
    assert {b"MESSAGE=changed", b"PRIORITY=4", b"SEALSVC_REQUEST=abc", b"SEALSVC_SEAL=65f0"} <= {
        *told
    }


def test_a_value_of_several_lines_cannot_forge_a_field() -> None:
    told = encoded({"MESSAGE": "one\nPRIORITY=0"})
    assert told == b"MESSAGE\n" + struct.pack("<Q", 14) + b"one\nPRIORITY=0\n"


@pytest.mark.parametrize("name", ["a\nERROR sealsvc: forged", "\u202egpj.exe", "\x1b[2J", "\udcff"])
def test_a_name_cannot_forge_a_line_of_the_log(name: str) -> None:
    """Also where it is part of an exception, or shown by %r."""
    made = record("%s, %r, %s\n%.1f", SEALSVC_SEAL=f"{name} sealsvc_principal=root")
    made.args = (name, name, Refusal("no-such-file", f"{name} does not exist"), 1.0)
    text, journal = LineFormatter().format(made), Journal(path="")
    told = journal.encode(made)
    journal._sock.close()
    assert name not in text
    assert text.count("\n") == 1, "the format's own"
    assert '" sealsvc_principal' not in text
    assert 'sealsvc_seal="' in text
    assert all(line.isprintable() for line in text.split("\n"))
    message = told[told.index(b"MESSAGE\n") + 16 :].decode()
    assert (
        message.partition("\nPRIORITY")[0] == text.partition(" [sealsvc_seal")[0].partition(": ")[2]
    )
    bare = record(f"about {name}\n")
    assert LineFormatter().format(bare).partition(" [")[0].isprintable()


def test_without_a_journal_a_line_has_the_fields() -> None:
    text = LineFormatter().format(record("changed", SEALSVC_SEAL="65f0", SEALSVC_STATUS=""))
    assert text == "WARNING sealsvc.api: changed [sealsvc_seal=65f0]"
