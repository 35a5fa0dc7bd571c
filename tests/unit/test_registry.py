"""The registry: what happened is found again, by whoever asks and however they ask."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from registry_support import (
    PEER,
    B,
    T,
    Told,
    event,
    info,
    map_of,
    moved,
    operation,
    registry,
    written,
)

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Drift, FileId, State
from sealsvc.protocol.history import Change, SealFilter
from sealsvc.registry import Registry, schema
from sealsvc.registry.book import Book
from sealsvc.registry.entries import digest
from sealsvc.registry.queries import Queries
from sealsvc.runtime.config import Config, RegistrySection
from tests.support.waiting import until


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def book(tmp_path: Path, told: Told) -> Iterator[Book]:
    made = registry(tmp_path / "r", told)
    yield made
    assert made.close()
    assert not told.alarms


def rows(book_directory: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(book_directory / schema.NAME)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def ids(book: Book, wanted: SealFilter, limit: int = 100) -> list[int]:
    return [int(seal.id, 16) for seal in book.queries.history(wanted, None, limit).seals]


def test_the_life_of_a_seal(book: Book) -> None:
    seal = info(1)
    book.granted(seal, map_of(1), PEER)
    book.watch(event("granted", seal.id, seal=seal))  # comes by granted()
    book.watch(moved(seal, State.RECALLED))
    written(book)
    [live] = book.queries.history(SealFilter(), None, 10).seals
    assert (live.state, live.ended_at, live.boot) == ("recalled", None, book.boot)
    book.watch(moved(seal, State.RETURNED, 3, at=T + 2))
    written(book)
    [over] = book.queries.history(SealFilter(), None, 10).seals
    assert (over.id, over.file, over.path) == (seal.id, seal.file, seal.path)
    assert (over.range, over.effective) == (seal.range, seal.effective)
    assert (over.holder_pid, over.holder_start) == (77, 2)
    assert (over.holder_uid, over.holder_comm) == (1000, "holder")
    assert (over.asker_pid, over.asker_uid) == (5, 1000)
    assert (over.granted_at, over.ended_at, over.state) == (T, T + 2, "returned")
    assert (over.reason, over.enforcers, over.mapped) == ("why", ["fanotify"], True)
    moves = book.queries.transitions(seal.id).transitions
    assert [(m.seqid, m.before, m.after) for m in moves] == [
        (1, "requested", "granted"),
        (2, "granted", "recalled"),
        (3, "granted", "returned"),
    ]
    trail = book.queries.audit(None, 10, seal=seal.id).entries
    assert [entry.kind for entry in trail] == ["state", "state", "granted"]
    assert trail[-1].data["asker"] == {"pid": 5, "uid": 1000}
    assert trail[-1].data["maps"] == [digest(map_of(1))]
    assert trail[0].hash == book.queries.verify().head


def test_filters_and_pages(book: Book) -> None:
    for n in range(1, 41):
        seal = info(n, path=f"/m/{n % 4}", at=T + n, pid=n % 5)
        book.granted(seal, map_of(n), PEER)
        if n % 2:
            book.watch(moved(seal, State.RETURNED, at=T + 100 + n))
    written(book)
    assert ids(book, SealFilter()) == list(range(40, 0, -1))
    assert ids(book, SealFilter(path="/m/3")) == list(range(39, 0, -4))
    assert ids(book, SealFilter(file=FileId(66, 7))) == [7]
    assert ids(book, SealFilter(pid=4, state="returned")) == [39, 29, 19, 9]
    assert ids(book, SealFilter(until=T + 3)) == [3, 2, 1]
    assert ids(book, SealFilter(state="returned", since=T + 137)) == [39, 37]
    found, cursor = [], None
    while True:
        page = book.queries.history(SealFilter(state="granted"), cursor, 7)
        found += [int(seal.id, 16) for seal in page.seals]
        cursor = page.next
        if cursor is None:
            break
    assert found == list(range(40, 0, -2))
    trail, cursor = [], None
    while cursor is not None or not trail:
        entries = book.queries.audit(cursor, 13)
        trail += [entry.seq for entry in entries.entries]
        cursor = entries.next
    assert trail == list(range(60, 0, -1))
    for cursor in ("x", "-1", "9" * 30, "1 OR 1"):
        with pytest.raises(Refusal) as refused:
            book.queries.history(SealFilter(), cursor, 1)
        assert refused.value.code == "bad-request"
    with pytest.raises(Refusal) as refused:
        book.queries.transitions("f" * 24)
    assert refused.value.code == "no-such-seal"


def test_conflicts_and_their_ends(book: Book) -> None:
    one, two = info(1), info(2)
    both = [one.id, two.id]
    held = {"operation": operation(), "seals": both, "verdict": "held", "errno": 0}
    book.watch(event("conflict", one.id, **held))
    book.watch(event("conflict", one.id, **held))  # told again after a restart
    refused = {"operation": operation(10), "seals": [two.id], "verdict": "refused", "errno": 26}
    book.watch(event("conflict", two.id, at=T + 2, **refused))
    written(book)
    second, first = book.queries.conflicts(None, 10).conflicts
    assert (first.seals, first.verdict, first.ended_at, first.result) == (both, "held", None, None)
    assert (second.seals, second.verdict, second.error) == ([two.id], "refused", 26)
    ended = {"operation": operation(), "result": 0, "waited": 1.5}
    book.watch(event("conflict-ended", at=T + 3, **ended))
    book.watch(event("conflict", one.id, at=T + 4, **held))  # the next of the same thread
    written(book)
    found = book.queries.conflicts(None, 10, seal=one.id).conflicts
    assert [(c.time, c.ended_at, c.result, c.waited) for c in found] == [
        (T + 4, None, None, None),
        (T + 1, T + 3, 0, 1.5),
    ]
    assert len(book.queries.conflicts(None, 10, pid=10).conflicts) == 1
    assert len(book.queries.conflicts(None, 10, since=T + 3).conflicts) == 1
    assert len(book.queries.conflicts(None, 10, until=T + 3, seal=two.id).conflicts) == 2


def test_the_rest_is_recorded_too(book: Book, tmp_path: Path) -> None:
    book.started(Config(), {"bpf": "", "lease": "no"})
    book.refused(Refusal("denied", "no", {"why": [1]}), "/m/x", PEER)
    book.watch(event("alarm", reason="look"))
    book.asked(PEER, "recall", None, path="/m")
    drift = Drift(seal=info(1).id, path="/m/1", logical=B, expected="this", found="that")
    book.granted(info(1), map_of(1), PEER)
    book.watch(event("drift", drift.seal, drift=drift))  # comes by drifted()
    book.drifted(drift, map_of(1), map_of(2))
    written(book)
    directory = tmp_path / "r"
    assert rows(directory, "SELECT code, path, asker_uid, details FROM refusals") == [
        ("denied", "/m/x", 1000, '{"why":[1]}')
    ]
    assert rows(directory, "SELECT seal, reason FROM alarms") == [(None, "look")]
    [(config, enforcers)] = rows(directory, "SELECT config, enforcers FROM configurations")
    assert json.loads(str(config))["registry"]["enabled"] is True
    assert json.loads(str(enforcers)) == {"bpf": "", "lease": "no"}
    assert rows(directory, "SELECT seal, logical, expected FROM drifts") == [
        (drift.seal, B, "this")
    ]
    [(old, new)] = book.queries.evidence(drift.seal)
    assert old is not None
    assert new is not None
    assert (old == map_of(1)).all()
    assert (new == map_of(2)).all()
    kinds = [entry.kind for entry in book.queries.audit(None, 10).entries]
    assert kinds == ["drift", "granted", "asked", "alarm", "refused", "started"]
    assert book.queries.audit(None, 1, kind="asked").entries[0].data == {
        "operation": "recall",
        "asker": {"pid": 5, "uid": 1000},
        "path": "/m",
    }


def test_how_a_map_has_changed(book: Book) -> None:
    seal = info(1)
    book.granted(seal, map_of(1), PEER)
    written(book)
    assert (book.queries.map_at_grant(seal.id) == map_of(1)).all()
    assert book.queries.map_difference(seal.id, map_of(1)).total == 0
    pieces = [
        [0, 101 * B, B, 0],
        [B, 900 * B, B, 0],  # moved
        [2 * B, 103 * B, B, 0],
        # a hole
        [4 * B, 502 * B, 2 * B, 0],
        [6 * B, 504 * B, 2 * B, 0x2000],  # shared
    ]
    now = np.array(pieces, dtype=np.uint64)
    found = book.queries.map_difference(seal.id, now)
    assert (found.total, found.changed, found.range) == (3, 4 * B, seal.effective)
    assert found.changes[0] == Change(
        range=ByteRange(B, B),
        expected=f"{B} bytes at device byte {102 * B}",
        found=f"{B} bytes at device byte {900 * B}",
    )
    assert found.changes[1].found == "a hole"
    assert found.changes[2].range == ByteRange(6 * B, 2 * B)
    assert "shared" in found.changes[2].found
    limited = book.queries.map_difference(seal.id, now, limit=1)
    assert (len(limited.changes), limited.total) == (1, 3)
    empty = np.empty((0, 4), np.uint64)
    assert book.queries.map_difference(seal.id, empty).changed == 8 * B


def test_a_restart_of_the_service(tmp_path: Path, told: Told) -> None:
    first = registry(tmp_path, told)
    for n in (1, 2, 3):
        first.granted(info(n), map_of(n), PEER)
    first.watch(moved(info(3), State.RETURNED))
    assert first.close()
    second = registry(tmp_path, told)
    second.present([(info(1), map_of(1))])
    second.present([(info(1), map_of(1))])
    written(second)
    found = {int(s.id, 16): s for s in second.queries.history(SealFilter(), None, 9).seals}
    assert (found[1].ended_at, found[1].asker_uid, found[1].mapped) == (None, 1000, True)
    assert found[2].ended_at is not None
    assert (found[2].state, found[2].reason) == ("granted", "its end was not recorded")
    assert found[3].state == "returned"
    assert len(rows(tmp_path, "SELECT * FROM seals")) == 3
    assert (second.queries.map_at_grant(info(1).id) == map_of(1)).all()
    assert second.queries.verify().intact
    assert second.close()


def test_a_restart_of_the_machine(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registry(tmp_path, told)
    first.granted(info(1), map_of(1), PEER)
    held = {"operation": operation(), "seals": [info(1).id], "verdict": "held", "errno": 0}
    first.watch(event("conflict", info(1).id, **held))
    assert first.close()
    monkeypatch.setattr("sealsvc.registry.recorder._boot_id", lambda: "another")
    second = registry(tmp_path, told)
    second.present([])
    written(second)
    [lost] = second.queries.history(SealFilter(), None, 9).seals
    assert lost.ended_at == pytest.approx(time.time(), abs=60)
    assert (lost.state, lost.reason) == ("granted", "not live after a restart of the machine")
    [conflict] = second.queries.conflicts(None, 9).conflicts
    assert conflict.ended_at is not None
    assert conflict.result is None
    assert second.close()


def test_the_present_is_recorded_when_its_past_is_not(book: Book) -> None:
    book.present([(info(n), map_of(n)) for n in range(600)])
    book.watch(moved(info(999), State.RETURNED))  # of a grant that was lost
    written(book)
    assert len(ids(book, SealFilter(), 1000)) == 600
    assert (book.queries.map_at_grant(info(599).id) == map_of(599)).all()


def test_paths_that_are_no_text(book: Book) -> None:
    path = b"/m/\xff\xfe".decode(errors="surrogateescape")
    book.granted(info(1, path=path), map_of(1), PEER)
    book.watch(event("alarm", reason=path))
    written(book)
    assert book.lost == 0
    [seal] = book.queries.history(SealFilter(path=path), None, 2).seals
    assert seal.path == r"/m/\udcff\udcfe"
    assert book.queries.verify().intact


def test_what_cannot_be_recorded_does_not_stop_the_rest(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told)
    book.granted(info(1), map_of(1), PEER)
    book.watch(event("state", info(1).id, nonsense=object()))
    book.watch(event("alarm", reason=object()))
    book.granted(info(2), map_of(2), PEER)
    until(lambda: book.lost == 2 and told.recoveries == [2])
    book.watch(event("alarm", reason="last"))
    written(book)
    assert ids(book, SealFilter()) == [2, 1]
    assert len(told.alarms) == 1
    assert not book.troubles
    assert book.queries.verify().intact
    assert book.close()


def test_a_registry_that_is_off(tmp_path: Path, told: Told) -> None:
    section = RegistrySection(directory=str(tmp_path / "r"), enabled=False)
    off = Registry(section, told.alarms.append, told.recoveries.append, lambda _: None)

    async def act() -> bool:
        off.start()
        off.granted(info(1), map_of(1), PEER)
        off.watch(event("alarm", reason="x"))
        with pytest.raises(Refusal, match="off"):
            await off.ask(0, Queries.verify)
        return await off.close()

    assert asyncio.run(act())
    assert (off.lag, off.lost) == (0, 0)
    assert not (tmp_path / "r").exists()


def test_a_reader_only_reads(book: Book, tmp_path: Path) -> None:
    book.watch(event("alarm", reason="look"))
    written(book)
    with closing(schema.open_reader(tmp_path / "r")) as connection:
        assert connection.row_factory is sqlite3.Row
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM seals")


def test_a_query_that_takes_too_long(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealsvc.registry.queries._STEPS", 1000)
    monkeypatch.setattr("sealsvc.registry.queries._TIME_LIMIT", 1e-9)
    for n in range(3000):
        book.granted(info(n), map_of(n), PEER)
    written(book)
    with pytest.raises(Refusal) as refused:
        book.queries.history(SealFilter(state="none such"), None, 10)
    assert (refused.value.code, refused.value.retry_after) == ("try-later", 1.0)


def test_nothing_to_read(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path / "r", told)
    written(book)
    assert book.close()
    (tmp_path / "r" / schema.NAME).unlink()
    with pytest.raises(Refusal) as refused:
        book.queries.verify()
    assert refused.value.code == "try-later"
