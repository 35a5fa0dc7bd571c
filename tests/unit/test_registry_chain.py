"""The audit trail: whoever changes it is found out, whatever they change."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_support import PEER, T, Told, event, info, map_of, registry, written

from sealsvc.protocol.history import Verification
from sealsvc.registry import chain, schema
from sealsvc.registry.chain import Chain

ENTRIES = 50


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(schema.open_writer(tmp_path)) as connection:
        add(connection, ENTRIES)
        yield connection


def add(connection: sqlite3.Connection, count: int, at: float = T) -> None:
    connection.execute("BEGIN")
    made = Chain(connection)
    for n in range(count):
        made.add(at + n, "kind", f"{n:024x}", {"n": n, "a": [1.5, None, "ü"]})
    made.flush()
    connection.execute("COMMIT")


def test_an_untouched_trail_is_intact(trail: sqlite3.Connection) -> None:
    found = chain.verify(trail)
    assert (found.intact, found.first, found.last, found.first_bad) == (True, 1, ENTRIES, None)
    assert (ENTRIES, found.head) == chain.head(trail)
    add(trail, 7)
    assert chain.verify(trail).last == ENTRIES + 7


def test_an_empty_trail_is_intact(tmp_path: Path) -> None:
    with closing(schema.open_writer(tmp_path)) as connection:
        assert chain.verify(connection) == Verification(
            intact=True, first=1, last=0, first_bad=None, why="", head="00" * 32
        )


@pytest.mark.parametrize(
    ("tampering", "bad"),
    [
        ("UPDATE audit SET body = replace(body, '\"n\":19', '\"n\":91') WHERE seq = 20", 20),
        ("UPDATE audit SET body = body || ' ' WHERE seq = 1", 1),
        ("UPDATE audit SET body = replace(body, 'kind', CAST(x'ff' AS TEXT)) WHERE seq = 3", 3),
        ("UPDATE audit SET hash = zeroblob(32) WHERE seq = 20", 20),
        ("UPDATE audit SET hash = 'text' WHERE seq = 50", 50),
        ("DELETE FROM audit WHERE seq = 30", 30),
        ("DELETE FROM audit WHERE seq > 40", 41),
        ("DELETE FROM audit WHERE seq <= 10", 1),
        ("DELETE FROM audit", 1),
        (
            "UPDATE audit SET seq = 1000 WHERE seq = 10; UPDATE audit SET seq = 10 WHERE seq = 11;"
            "UPDATE audit SET seq = 11 WHERE seq = 1000",
            10,
        ),
        ("UPDATE audit_ends SET hash = zeroblob(32)", 51),
        ("INSERT INTO audit_ends VALUES ('checkpoint', 10, zeroblob(32))", 11),
        ("INSERT INTO audit (seq, body, hash) VALUES (51, '{}', zeroblob(32))", 51),
    ],
)
def test_tampering_is_found(trail: sqlite3.Connection, tampering: str, bad: int) -> None:
    # Whoever tampers has no use for what checks as they write.
    for index in ("audit_by_kind", "audit_by_seal"):
        trail.execute(f"DROP INDEX {index}")
    trail.executescript(tampering)
    found = chain.verify(trail)
    assert (found.intact, found.first_bad) == (False, bad)
    assert found.why


def test_what_was_forged_whole_is_told_by_the_noted_head(trail: sqlite3.Connection) -> None:
    """The limit of a chain without a key."""
    noted = chain.verify(trail).head
    trail.executescript("DELETE FROM audit; DELETE FROM audit_ends")
    add(trail, ENTRIES - 1)
    found = chain.verify(trail)
    assert found.intact
    assert found.head != noted


def test_a_trail_that_was_cut_can_still_be_verified(trail: sqlite3.Connection) -> None:
    assert chain.cut(trail, T + 20, 7) == (7, "")
    assert chain.cut(trail, T + 20, 100) == (13, "")
    assert chain.cut(trail, T + 20, 100) == (0, "")
    found = chain.verify(trail)
    assert (found.intact, found.first, found.last) == (True, 21, ENTRIES)
    add(trail, 1)
    assert chain.verify(trail).intact
    trail.execute("DELETE FROM audit WHERE seq = 21")
    assert chain.verify(trail).first_bad == 21
    assert chain.cut(trail, T + 1000, 1000) == (30, "entry 21 is missing")
    assert (chain.verify(trail).intact, chain.verify(trail).first) == (True, ENTRIES + 2)


def test_a_transaction_that_fails_leaves_no_gap(trail: sqlite3.Connection) -> None:
    trail.execute("BEGIN")
    made = Chain(trail)
    made.add(T, "kind", None, {})
    made.flush()
    trail.execute("ROLLBACK")
    add(trail, 1)
    assert (chain.verify(trail).intact, chain.verify(trail).last) == (True, ENTRIES + 1)


def test_the_registry_writes_such_a_trail(tmp_path: Path) -> None:
    book = registry(tmp_path, Told())
    for n in range(2000):
        book.granted(info(n), map_of(n), PEER)
        book.watch(event("alarm", reason="x"))
    written(book)
    found = book.queries.verify()
    assert (found.intact, found.last) == (True, 4000)
    with closing(sqlite3.connect(tmp_path / schema.NAME)) as other:
        other.execute("UPDATE audit SET body = replace(body, 'alarm', 'alert') WHERE seq = 1234")
        other.commit()
    found = book.queries.verify()
    assert (found.intact, found.first_bad) == (False, 1234)
    assert book.close()


json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json)
def test_canonical_json_is_json_in_one_form(value: object) -> None:
    text = chain.canonical(value)
    assert msgspec.json.decode(text) == value
    assert chain.canonical(msgspec.json.decode(text)) == text


def test_what_is_no_text_is_escaped() -> None:
    assert chain.canonical({"b": "\udcff", "a": ["\ud800"]}) == r'{"a":["\\ud800"],"b":"\\udcff"}'
