"""Relocation by a new file that takes the name, on files that have a page cache."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sealsvc.client import Client
from sealsvc.copies.relocation.record import Phase, Record
from sealsvc.copies.relocation.replacing import undo
from sealsvc.protocol.admin import JobState
from sealsvc.protocol.relocation import Goal, Relocate
from sealsvc.protocol.seals import Recall, Return, Show
from tests.copies.relocating import fragmented, granted, relocated
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

ANY = Goal(defrag=True)


@pytest.fixture
def scattered(file: Path) -> Iterator[Path]:
    """In many extents, also on ext4: every second piece is another file's."""
    other = file.with_name("other")
    with file.open("w+b") as one, other.open("w+b") as two:
        for number in range(16):
            for opened in (one, two):
                os.pwrite(opened.fileno(), os.urandom(65536), number * 65536)
                os.fsync(opened.fileno())
    yield file
    other.unlink()


def test_the_name_is_a_new_files_and_everything_else_is_the_same(
    client: Client, scattered: Path
) -> None:
    file = scattered
    os.chown(file, 1234, 2345)
    file.chmod(0o4750)
    os.setxattr(file, "user.colour", b"blue")
    os.utime(file, ns=(10**18, 2 * 10**18))
    data, before = file.read_bytes(), file.stat()
    os.utime(file, ns=(10**18, 2 * 10**18))  # reading may have changed one of them
    names = sorted(path.name for path in file.parent.iterdir())
    job = relocated(client, file, Goal(to=str(file.parent)), replace=True)
    assert job.state is JobState.DONE, job.error
    assert job.result["moved"], job.result
    assert job.result["replaced"]
    after = file.stat()
    assert after.st_ino != before.st_ino
    same = ("st_mode", "st_uid", "st_gid", "st_size", "st_mtime_ns", "st_nlink")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]
    assert os.getxattr(file, "user.colour") == b"blue"
    assert file.read_bytes() == data
    assert sorted(path.name for path in file.parent.iterdir()) == names


def test_a_holder_returns_and_grants_anew(client: Client, socket: str, file: Path) -> None:
    data = fragmented(file, 16)
    with Client(socket) as holder:
        reply = granted(holder, file)
        os.close(reply.fds[0])
        jobs = []
        asking = threading.Thread(
            target=lambda: jobs.append(
                relocated(client, file, Goal(to=str(file.parent)), replace=True, grace=100)
            )
        )
        asking.start()
        recall = next(push for push in holder.pushes(PATIENCE) if isinstance(push, Recall))
        assert not recall.quiesce
        assert "grant it anew" in recall.reason
        holder.call(Return, seal=reply.seal.id)
        asking.join(PATIENCE)
        assert jobs[0].state is JobState.DONE, jobs[0].error
        again = granted(holder, file)
        assert os.fstat(again.fds[0]).st_ino == file.stat().st_ino
        assert os.pread(again.fds[0], len(data), 0) == data
        os.close(again.fds[0])
        holder.call(Return, seal=again.seal.id)


def test_a_holder_that_keeps_it_goes_on(client: Client, socket: str, file: Path) -> None:
    fragmented(file, 8)
    inode = file.stat().st_ino
    with Client(socket) as holder:
        reply = granted(holder, file)
        os.close(reply.fds[0])
        job = relocated(client, file, Goal(to=str(file.parent)), replace=True, grace=0.2)
        assert job.state is JobState.FAILED
        assert "did not return seal" in job.error
        assert holder.call(Show, seal=reply.seal.id).seal.state == "granted"
        assert file.stat().st_ino == inode
        holder.call(Return, seal=reply.seal.id)


def test_a_file_that_somebody_has_open_or_that_has_two_names_stays(
    client: Client, file: Path
) -> None:
    fragmented(file, 8)
    inode = file.stat().st_ino
    with file.open("rb"):
        job = relocated(client, file, Goal(to=str(file.parent)), replace=True)
        assert job.state is JobState.FAILED
        assert "open" in job.error
    os.link(file, file.with_name("second"))
    job = relocated(client, file, Goal(to=str(file.parent)), replace=True)
    file.with_name("second").unlink()
    assert job.state is JobState.FAILED
    assert "2 names" in job.error
    assert file.stat().st_ino == inode


@pytest.mark.parametrize("whose", ["donor", "old", "another"])
def test_what_a_service_that_died_left_is_removed(tmp_path: Path, whose: str) -> None:
    """The temporary name, if it is the new file's or the old one's; another file stays."""
    left = tmp_path / ".sealsvc-0123"
    left.write_text("x")
    status = left.stat()
    record = Record(
        id="0123", path=str(tmp_path / "f"), device=status.st_dev, inode=1, goal=ANY, grace=1.0,
        principal="", phase=Phase.SWAP, replace=True, temporary=left.name, donor=2,
    )  # fmt: skip
    if whose != "another":
        field = {"donor": "donor", "old": "inode"}[whose]
        record = msgspec.structs.replace(record, **{field: status.st_ino})
    undo(record)
    assert left.exists() == (whose == "another")


@pytest.mark.parametrize("point", ["relocate:swapping", "relocate:swapped"])
def test_the_service_is_killed_between_the_names(
    xfs: Path, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = xfs / f"replaced-{point[-3:]}"
    directory.mkdir()
    file = directory / "f"
    data, inode = fragmented(file, 8), file.stat().st_ino
    running = Running(tmp_path, [xfs], RISKS)
    with monkeypatch.context() as armed:
        armed.setenv("SEALSVC_FAULTS", f"{point}=kill")
        running.start()
    try:
        running.ready()
        with Client(str(running.socket)) as client:
            client.call(Relocate, path=str(file), goal=Goal(to=str(directory)), replace=True)
        assert running.process is not None
        running.process.wait(PATIENCE)
        assert len(list(directory.iterdir())) == 2
        running.start()
        running.ready()
        until(lambda: [path.name for path in directory.iterdir()] == ["f"])
        assert file.read_bytes() == data
        assert (file.stat().st_ino == inode) == (point == "relocate:swapping")
    finally:
        running.end()
        file.unlink()
        directory.rmdir()
