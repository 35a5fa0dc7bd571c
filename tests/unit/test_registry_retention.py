"""Forgetting: what is over goes, what lives stays, and the audit trail hangs together."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

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
from sealsvc.core.model import Drift, State
from sealsvc.protocol.history import SealFilter
from sealsvc.registry import chain, schema
from sealsvc.registry.archive import Archive
from sealsvc.registry.retention import Retention, size_of
from tests.support.waiting import until

DAY = 86400.0
TABLES = ("seals", "transitions", "conflicts", "conflict_seals", "refusals", "alarms", "drifts")


def lives(directory: Path, numbers: range, *, at: float, living: Callable[[int], bool]) -> None:
    """Seals that were granted at a time, met a conflict, drifted, and ended, but for the living."""
    book = registry(directory, Told(), retention_days=10_000.0)
    for n in numbers:
        seal = info(n, at=at)
        book.granted(seal, map_of(n), PEER)
        met = {"operation": operation(n), "seals": [seal.id], "verdict": "refused", "errno": 26}
        book.watch(event("conflict", seal.id, at=at, **met))
        book.watch(event("alarm", reason="look", at=at))
        book.watch(moved(seal, State.RECALLED, at=at))
        if not living(n):
            book.watch(moved(seal, State.RETURNED, 3, at=at))
        if n % 2000 == 1999:
            until(lambda: not book.lag)
    for n in numbers[::10]:
        drift = Drift(seal=info(n).id, path="/m", logical=B, expected="a", found="b")
        book.drifted(drift, map_of(n), map_of(n + 1))
    until(lambda: not book.lag)
    assert book.close()


def counts(connection: sqlite3.Connection) -> dict[str, int]:
    count = "SELECT count(*) FROM "
    return {name: connection.execute(count + name).fetchone()[0] for name in TABLES}


def forget(directory: Path, *, days: float = 30.0, most: int = 1 << 40) -> int:
    """Until nothing more is to be done; the number of steps."""
    archive = Archive(directory / "maps")
    archive.verify()
    told = Told()
    retention = Retention(directory, archive, days, most, told.alarms.append)
    steps = 1
    with closing(schema.open_writer(directory)) as connection:
        while retention.step(connection):
            steps += 1
            assert steps < 1000
            assert steps % 20 or chain.verify(connection).intact
    assert not told.alarms
    return steps


def test_what_is_old_goes_and_what_lives_stays(tmp_path: Path) -> None:
    lives(tmp_path, range(1000), at=T - 40 * DAY, living=lambda n: n % 100 == 0)
    lives(tmp_path, range(1000, 1100), at=T - 20 * DAY, living=lambda n: False)
    # drifted() and present() say the time themselves: let them be as old as the rest.
    with closing(schema.open_writer(tmp_path)) as connection:
        connection.execute("UPDATE drifts SET time = ? WHERE number <= 100", (T - 40 * DAY,))
        before = counts(connection)
    steps = forget(tmp_path)
    assert steps > 2
    with closing(schema.open_writer(tmp_path)) as connection:
        after = counts(connection)
        assert before["seals"] == 1100
        assert after == {
            "seals": 110,
            "transitions": 320,
            "conflicts": 110,
            "conflict_seals": 110,
            "refusals": 0,
            "alarms": 100,
            "drifts": 20,
        }
        found = chain.verify(connection)
        assert found.intact
        assert found.first > 1000
    book = registry(tmp_path, Told())
    book.present([(info(n), map_of(n)) for n in range(0, 1000, 100)])
    written(book)
    live = book.queries.history(SealFilter(state="granted"), None, 1000).seals
    assert len(live) == 10
    for seal in live:
        number = int(seal.id, 16)
        assert (book.queries.map_at_grant(seal.id) == map_of(number)).all()
        assert [m.seqid for m in book.queries.transitions(seal.id).transitions] == [1, 2]
        [(old, _)] = book.queries.evidence(seal.id)
        assert old is not None
    assert book.queries.verify().intact
    assert book.close()


def test_a_directory_that_is_too_large_shrinks(tmp_path: Path) -> None:
    lives(tmp_path, range(6000), at=T - 2 * DAY, living=lambda n: n == 3)
    lives(tmp_path, range(6000, 8000), at=T - DAY, living=lambda n: False)
    with closing(schema.open_writer(tmp_path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before, most = size_of(tmp_path), 6 << 20
    assert before > 2 * most
    forget(tmp_path, most=most)
    assert size_of(tmp_path) < most * 1.1
    with closing(schema.open_writer(tmp_path)) as connection:
        assert chain.verify(connection).intact
        kept = [int(row[0], 16) for row in connection.execute("SELECT id FROM seals")]
    assert 3 in kept
    assert 7999 in kept


def test_segments_go_when_nobody_refers_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealsvc.registry.archive._MAPS_PER_SEGMENT", 100)
    archive = Archive(tmp_path / "maps", maps_per_segment=100)
    book = registry(tmp_path, Told(), retention_days=10_000.0)
    book._writer._archive = archive
    for n in range(500):
        book.granted(info(n, at=T - 40 * DAY), map_of(n), PEER)
        if n != 150:
            book.watch(moved(info(n), State.RETURNED, at=T - 40 * DAY))
    written(book)
    assert book.close()
    assert len(archive.segments()) == 6
    for data in (tmp_path / "maps").glob("*/data.ninja"):
        os.utime(data, (T - 40 * DAY, T - 40 * DAY))
    forget(tmp_path)
    assert archive.segments() == [2, 6]  # that of the live seal, and the one appended to
    book = registry(tmp_path, Told())
    assert (book.queries.map_at_grant(info(150).id) == map_of(150)).all()
    with pytest.raises(Refusal, match="nothing is recorded"):
        book.queries.map_at_grant(info(1).id)
    assert book.close()


def test_what_was_moved_aside_goes_in_time(tmp_path: Path) -> None:
    (tmp_path / schema.NAME).write_bytes(b"no database" * 1000)
    (tmp_path / "maps" / "torn-000001-1").mkdir(parents=True)
    told = Told()
    book = registry(tmp_path, told)
    until(lambda: bool(told.recoveries))
    assert book.close()
    aside = [*tmp_path.glob("*.aside-*"), *tmp_path.glob("maps/torn-*")]
    assert len(aside) == 2
    forget(tmp_path)
    assert all(path.exists() for path in aside)
    for path in aside:
        os.utime(path, (T - 40 * DAY, T - 40 * DAY))
    forget(tmp_path)
    assert not any(path.exists() for path in aside)


def test_tampering_is_told_before_its_traces_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives(tmp_path, range(100), at=T - 40 * DAY, living=lambda n: False)
    with closing(schema.open_writer(tmp_path)) as connection:
        connection.execute("DELETE FROM audit WHERE seq = 33")
    told = Told()
    book = registry(tmp_path, told, retention_days=30.0)
    until(lambda: bool(told.alarms))
    assert "entry 33 is missing" in told.alarms[0]
    [entry] = book.queries.audit(None, 9, kind="broken").entries
    assert entry.data == {"why": "entry 33 is missing"}
    assert book.queries.verify().intact
    assert book.close()


def test_the_writer_forgets_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealsvc.registry.writer._RETENTION_PAUSE", 0.02)
    told = Told()
    book = registry(tmp_path, told, retention_days=1 / DAY)  # a second
    for n in range(2000):
        book.granted(info(n), map_of(n), PEER)
        if n % 2:
            book.watch(moved(info(n), State.RETURNED))
    written(book)
    time.sleep(1.1)

    def over() -> bool:
        with closing(sqlite3.connect(tmp_path / schema.NAME)) as connection:
            return counts(connection)["seals"] == 1000

    until(over)
    assert book.queries.verify().intact
    assert not told.alarms
    assert book.close()


def test_it_forgets_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While entries come without a pause: what is old goes, no new one is lost, and the trail hangs
    together at every moment."""
    old, new = range(3000), range(10_000, 16_000)
    lives(tmp_path, old, at=T - 40 * DAY, living=lambda n: n % 100 == 0)
    monkeypatch.setattr("sealsvc.registry.writer._RETENTION_PAUSE", 0.0)
    told = Told()
    book = registry(tmp_path, told, retention_days=30.0)
    for n in new:
        book.granted(info(n, at=time.time()), map_of(n), PEER)
        book.watch(moved(info(n), State.RETURNED, at=time.time()))
        if n % 500 == 0:
            assert book.queries.verify().intact
            until(lambda: book.lag < 2000)
    written(book)
    left = len(new) + len(old[::100])

    def forgotten() -> bool:
        with closing(sqlite3.connect(tmp_path / schema.NAME)) as connection:
            return counts(connection)["seals"] == left

    until(forgotten)
    assert book.queries.verify().intact
    assert (book.lost, told.alarms) == (0, [])
    assert book.close()


def test_a_wall_clock_that_is_ahead_for_a_while_has_nothing_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives(tmp_path, range(100), at=T - 10 * DAY, living=lambda _: False)
    wall, up = [time.time()], [1000.0]
    monkeypatch.setattr(time, "time", lambda: wall[0])
    monkeypatch.setattr(time, "clock_gettime", lambda _: up[0])

    def step(by_wall: float, by_boot: float) -> int:
        wall[0] += by_wall
        up[0] += by_boot
        while retention.step(connection):
            pass
        return counts(connection)["seals"]

    with closing(schema.open_writer(tmp_path)) as connection:
        archive = Archive(tmp_path / "maps")
        archive.verify()
        retention = Retention(tmp_path, archive, 30.0, 1 << 40, lambda _: None)
        assert step(0, 0) == 100
        assert step(200 * DAY, 60) == 100
        # Not by another process, after a restart of the machine, either.
        up[0] = 5.0
        retention = Retention(tmp_path, archive, 30.0, 1 << 40, lambda _: None)
        assert step(0, 60) == 100
        assert step(-200 * DAY, 60) == 100
        # In its own time it goes: a machine that was off is caught up with, slowly.
        assert step(30 * DAY, 5 * DAY) == 100
        assert step(5 * DAY, 4 * DAY) == 100
        assert step(5 * DAY, 5 * DAY) == 0
