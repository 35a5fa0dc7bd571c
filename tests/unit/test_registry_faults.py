"""What befalls the registry: nobody waits for it, one alarm tells of it, and it comes back."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from registry_support import PEER, Told, event, fill, info, map_of, moved, registry, written

from sealsvc.core.errors import Refusal
from sealsvc.core.model import State
from sealsvc.protocol.history import SealFilter
from sealsvc.registry import schema
from sealsvc.registry.archive import Archive
from sealsvc.registry.book import Book
from sealsvc.registry.retention import Retention
from sealsvc.runtime.config import RegistrySection
from tests.support.waiting import PATIENCE, until


@pytest.fixture
def told() -> Told:
    return Told()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Another program has the database, for writing."""
    with closing(sqlite3.connect(directory / schema.NAME, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    point = tmp_path / "tiny"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)


def test_a_locked_database_holds_nobody_up(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told)
    written(book)
    with locked(tmp_path):
        for n in range(1000):
            book.granted(info(n), map_of(n), PEER)
            book.watch(moved(info(n), State.RETURNED))
        time.sleep(0.6)  # longer than SQLite's own patience
        assert book.lag == 2000
    written(book)
    assert (book.lost, told.alarms, told.recoveries) == (0, [], [])
    assert len(book.queries.history(SealFilter(), None, 2000).seals) == 1000
    assert book.close()


def test_the_watcher_does_no_io(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told)
    written(book)
    counters = Path(f"/proc/self/task/{threading.get_native_id()}/io")

    def calls() -> list[int]:
        """Of read(2), write(2) and their like, by this thread; looking is two."""
        return [int(line.split()[1]) for line in counters.read_text().splitlines()[2:4]]

    before = calls()
    still = calls()
    for n in range(1000):
        book.granted(info(n), map_of(n), PEER)
        book.watch(moved(info(n), State.RETURNED))
    after = calls()
    assert [b - a for a, b in zip(still, after, strict=True)] == [
        b - a for a, b in zip(before, still, strict=True)
    ]
    written(book)
    assert book.close()


def test_large_maps_wait_in_bounded_memory(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told)
    written(book)
    large = np.zeros((1 << 20, 4), np.uint64)  # 32 MiB
    large[:, 0] = np.arange(1 << 20) * 4096
    with locked(tmp_path):
        for n in range(5):
            book.granted(info(n), large, PEER)
    written(book)
    seals = book.queries.history(SealFilter(), None, 9).seals
    assert [seal.mapped for seal in seals].count(True) in (2, 3)
    assert (book.lost, told.alarms) == (0, [])
    assert len(book.queries.map_at_grant(seals[-1].id)) == 1 << 20
    assert book.close()


def test_a_queue_that_is_full(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told, queue=1000)
    book.granted(info(1), map_of(1), PEER)
    written(book)
    tracemalloc.start()
    with locked(tmp_path):
        for n in range(100_000):
            book.watch(event("alarm", reason=f"number {n}"))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        assert 900 <= book.lag <= 1000 + 512
        lost = book.lost
        assert 98_000 <= lost <= 99_100
        assert len(told.alarms) == 1
    tracemalloc.stop()
    until(lambda: bool(told.recoveries))
    written(book)
    assert told.recoveries == [lost]
    [gap] = book.queries.audit(None, 10, kind="lost").entries
    assert (gap.data["lost"], gap.data["reasons"]) == (lost, ["1000 events wait"])
    assert gap.data["from"] <= gap.data["to"]
    assert book.queries.verify().intact
    [seal] = book.queries.history(SealFilter(), None, 10).seals
    assert seal.ended_at is None
    assert book.close()


def test_a_directory_that_cannot_be_made(tmp_path: Path, told: Told) -> None:
    obstacle = tmp_path / "file"
    obstacle.touch()
    book = registry(obstacle / "registry", told, queue=10)
    for n in range(50):
        book.watch(event("alarm", reason=f"number {n}"))
    until(lambda: bool(told.alarms))
    until(lambda: book.lost >= 40)
    assert "Not a directory" in book.troubles[0] or "wait" in told.alarms[0]
    obstacle.unlink()
    until(lambda: bool(told.recoveries))
    written(book)
    assert (len(told.alarms), told.recoveries, book.lost) == (1, [40], 40)
    assert len(book.queries.audit(None, 100, kind="alarm").entries) == 10
    assert book.close()


def test_a_full_disk(tiny: Path, told: Told) -> None:
    book = registry(tiny / "r", told, queue=500, retry=0.5)
    book.granted(info(0), map_of(0), PEER)
    written(book)
    ballast = tiny / "ballast"
    fill(ballast)
    for n in range(1, 3000):
        book.granted(info(n), map_of(n), PEER)
        time.sleep(0.0001)
    until(lambda: bool(told.alarms))
    until(lambda: book.lost > 1000)
    assert book.queries.history(SealFilter(), None, 1).seals  # it can be read meanwhile
    ballast.unlink()
    until(lambda: bool(told.recoveries))
    written(book)
    assert len(told.alarms) == 1
    assert told.recoveries == [book.lost]
    kept = [info(n) for n in range(2990, 3000)]
    book.present([(seal, map_of(int(seal.id, 16))) for seal in kept])
    written(book)
    assert book.queries.verify().intact
    live = book.queries.history(SealFilter(state="granted"), None, 5000).seals
    assert sorted(s.id for s in live if s.ended_at is None) == [seal.id for seal in kept]
    assert all((book.queries.map_at_grant(s.id) == map_of(int(s.id, 16))).all() for s in kept)
    assert book.close()


def test_an_archive_that_cannot_be_written(tmp_path: Path, told: Told) -> None:
    obstacle = tmp_path / "maps"
    obstacle.touch()
    book = registry(tmp_path, told)
    book.granted(info(1), map_of(1), PEER)
    written(book)
    assert "maps are not archived" in told.alarms[0]
    [seal] = book.queries.history(SealFilter(), None, 9).seals
    assert not seal.mapped
    with pytest.raises(Refusal, match="not in the archive"):
        book.queries.map_at_grant(seal.id)
    obstacle.unlink()
    book.granted(info(2), map_of(2), PEER)
    until(lambda: told.recoveries == [0])
    book.present([(info(n), map_of(n)) for n in (1, 2)])
    written(book)
    for n in (1, 2):
        assert (book.queries.map_at_grant(info(n).id) == map_of(n)).all()
    assert len(Archive(tmp_path / "maps").segments()) == 1
    assert (book.lost, book.close()) == (0, True)


def test_a_full_disk_from_the_start(tiny: Path, told: Told) -> None:
    ballast = tiny / "ballast"
    fill(ballast)
    book = registry(tiny / "r", told)
    book.granted(info(1), map_of(1), PEER)
    until(lambda: bool(told.alarms))
    ballast.unlink()
    until(lambda: bool(told.recoveries))
    written(book)
    assert (len(told.alarms), told.recoveries, book.lost) == (1, [0], 0)
    assert (book.queries.map_at_grant(info(1).id) == map_of(1)).all()
    assert book.close()


def test_a_file_that_may_not_grow(tmp_path: Path, told: Told) -> None:
    """As on a full disk, for those who are not root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    book = registry(tmp_path, told, queue=500)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400 << 10, hard))
        for n in range(2000):
            book.granted(info(n), map_of(n), PEER)
            time.sleep(0.0001)
        until(lambda: bool(told.alarms) and book.lost > 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    until(lambda: bool(told.recoveries))
    written(book)
    assert book.queries.verify().intact
    assert book.close()


def test_a_disk_that_becomes_read_only(tiny: Path, told: Told) -> None:
    book = registry(tiny / "r", told)
    book.granted(info(1), map_of(1), PEER)
    assert book.close()
    remount = ["mount", "-o", "remount,{}", tiny]
    subprocess.run([str(part).format("ro") for part in remount], check=True)
    book = registry(tiny / "r", told)
    book.granted(info(2), map_of(2), PEER)
    until(lambda: bool(told.alarms))
    subprocess.run([str(part).format("rw") for part in remount], check=True)
    until(lambda: bool(told.recoveries))
    written(book)
    assert (len(told.alarms), book.lost) == (1, 0)
    assert len(book.queries.history(SealFilter(), None, 9).seals) == 2
    assert book.close()


@pytest.mark.parametrize("what", ["garbage", "another program's", "of the future", "damaged"])
def test_a_database_that_cannot_be_used(tmp_path: Path, told: Told, what: str) -> None:
    path = tmp_path / schema.NAME
    if what == "garbage":
        path.write_bytes(random.Random(1).randbytes(50_000))
    elif what == "another program's":
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE seals (x)")
    else:
        book = registry(tmp_path, told)
        for n in range(2000):
            book.granted(info(n), map_of(n), PEER)
        assert book.close()
        if what == "of the future":
            with closing(sqlite3.connect(path)) as other:
                other.execute("PRAGMA user_version = 99")
        else:
            scribble(path)
    book = registry(tmp_path, told)
    book.granted(info(5000), map_of(5000), PEER)
    until(lambda: bool(told.recoveries))
    written(book)
    assert (len(told.alarms), told.recoveries) == (1, [0])
    assert "aside-" in told.alarms[0]
    assert len([p for p in tmp_path.iterdir() if "aside-" in p.name and p.name[-1].isdigit()]) == 1
    [seal] = book.queries.history(SealFilter(), None, 9).seals
    assert seal.id == info(5000).id
    assert (book.queries.map_at_grant(seal.id) == map_of(5000)).all()
    assert book.close()


def test_a_database_that_is_damaged_while_it_is_open(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told)
    for n in range(3000):
        book.granted(info(n), map_of(n), PEER)
    written(book)
    with closing(sqlite3.connect(tmp_path / schema.NAME)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    scribble(tmp_path / schema.NAME)
    for n in range(3000, 6000):
        book.granted(info(n), map_of(n), PEER)
        time.sleep(0.0001)
    until(lambda: bool(told.recoveries))
    book.present([(info(1), map_of(1))])
    written(book)
    assert (len(told.alarms), book.lost) == (1, 0)
    [seal] = [s for s in book.queries.history(SealFilter(), None, 9999).seals if not s.ended_at]
    assert seal.id == info(1).id
    assert book.queries.verify().intact
    assert book.close()


def scribble(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for at in range(4096 * 2, size, 4096):
            file.seek(at)
            file.write(b"\xa5" * 200)


def test_a_database_that_is_taken_away(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealsvc.registry.writer._RETENTION_PAUSE", 0.05)
    directory = tmp_path / "r"
    book = registry(directory, told)
    book.granted(info(1), map_of(1), PEER)
    written(book)
    directory.rename(tmp_path / "away")
    until(lambda: bool(told.recoveries))
    book.present([(info(1), map_of(1))])
    written(book)
    assert (book.queries.map_at_grant(info(1).id) == map_of(1)).all()
    assert book.close()


def test_one_service_writes_at_a_time(tmp_path: Path, told: Told) -> None:
    first = registry(tmp_path, Told())
    first.granted(info(2), map_of(2), PEER)
    written(first)
    second = registry(tmp_path, told)
    second.granted(info(1), map_of(1), PEER)
    until(lambda: bool(told.alarms))
    assert "another service" in told.alarms[0]
    assert first.close()
    until(lambda: bool(told.recoveries))
    written(second)
    assert second.queries.verify().intact
    assert second.close()


def test_closing_is_bounded(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told)
    written(book)
    with locked(tmp_path):
        for n in range(2000):
            book.watch(event("alarm", reason=f"number {n}"))
        assert book.close(PATIENCE)  # true: it did not have to be given up
    assert book.lost == 2000


def test_what_comes_after_the_end_is_lost(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told)
    assert book.close()
    book.watch(event("alarm", reason="late"))
    assert (book.lag, book.lost, told.alarms) == (0, 1, [])
    assert book.close()
    never_started = Book(
        RegistrySection(directory=str(tmp_path)), told.alarms.append, told.recoveries.append
    )
    assert never_started.close()


def test_damage_that_only_retention_meets(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sealsvc.registry.writer._RETENTION_PAUSE", 0.05)
    between_steps, step = threading.Lock(), Retention.step

    def stepping(self: Retention, connection: sqlite3.Connection) -> bool:
        with between_steps:
            return step(self, connection)

    monkeypatch.setattr(Retention, "step", stepping)
    book = registry(tmp_path, told, retention_days=1.0)
    for n in range(3000):
        book.granted(info(n), map_of(n), PEER)
    written(book)
    # A step between the change and the damage would read what is still whole, and go by that.
    with between_steps:
        with closing(sqlite3.connect(tmp_path / schema.NAME)) as other:
            # A change, though none, so that the writer does not go by the pages that it has read.
            (version,) = other.execute("PRAGMA user_version").fetchone()
            other.execute(f"PRAGMA user_version = {version}")
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        scribble(tmp_path / schema.NAME)
    until(lambda: bool(told.recoveries))
    written(book)
    assert len(told.alarms) == 1
    assert book.queries.verify().intact
    assert book.close()


def test_callbacks_that_fail_harm_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def fail(_: object) -> None:
        raise RuntimeError("nobody listens")

    section = RegistrySection(directory=str(tmp_path / "file" / "r"))
    book = Book(section, fail, fail, queue=1, retry=0.05)
    book.start()
    for _ in range(10):
        book.watch(event("alarm", reason="x"))
    (tmp_path / "file").unlink()
    written(book)
    assert book.close()


CHILD = """
import itertools, sys
from pathlib import Path
sys.path[:0] = [{unit!r}]
from registry_support import *
book = registry(Path({directory!r}), Told(), queue=5000)
begun = False
for n in itertools.count({first}):
    while book.lag > 4000:
        time.sleep(0.001)
    book.granted(info(n), map_of(n), PEER)
    if not begun and n - {first} - book.lag >= 500:
        begun = not print("go", flush=True)
"""


def test_a_writer_that_is_killed(tmp_path: Path, told: Told) -> None:
    chance = random.Random(7)
    for round in range(6):
        source = CHILD.format(
            unit=str(Path(__file__).parent), directory=str(tmp_path), first=round * 10**6
        )
        child = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.1 + chance.random() / 2)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    book = registry(tmp_path, told)
    book.granted(info(1 << 60), map_of(9), PEER)
    written(book)
    assert not told.alarms
    assert book.queries.verify().intact
    seals = book.queries.history(SealFilter(), None, 10**6).seals
    assert len(seals) > 1000
    for seal in seals[:: max(1, len(seals) // 500)]:
        number = 9 if int(seal.id, 16) == 1 << 60 else int(seal.id, 16)
        assert (book.queries.map_at_grant(seal.id) == map_of(number)).all()
    assert book.close()
    archive = Archive(tmp_path / "maps")
    archive.verify()
    archive.close()


def test_damage_that_only_a_query_meets(tmp_path: Path, told: Told) -> None:
    book = registry(tmp_path, told)
    for n in range(3000):
        book.granted(info(n), map_of(n), PEER)
    written(book)
    with closing(sqlite3.connect(tmp_path / schema.NAME)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    scribble(tmp_path / schema.NAME)
    with pytest.raises(Refusal, match="malformed"):
        book.queries.history(SealFilter(), None, 9999)
    until(lambda: bool(told.recoveries))
    written(book)
    [gap] = book.queries.audit(None, 10, kind="lost").entries
    assert any("a new one is begun" in reason for reason in gap.data["reasons"])
    assert book.queries.verify().intact
    assert book.close()
