"""Relocation of real files on XFS (with either way to exchange extents) and ext4, under holders."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from sealsvc.client import Client
from sealsvc.copies.relocation import calls, moving
from sealsvc.copies.relocation.dirty import DirtyLog
from sealsvc.copies.relocation.donor import runs
from sealsvc.core.model import FileId
from sealsvc.linux import native
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.protocol.admin import CancelJob, JobState
from sealsvc.protocol.relocation import Goal, Quiesce, Relocate
from sealsvc.protocol.seals import Recall, Return, Show
from sealsvc.protocol.system import Audit, AuditReport
from tests.copies.relocating import PIECE, Holder, as_stored, fragmented, granted, relocated
from tests.support.refusals import refusal
from tests.support.scratch import MiB, mounted
from tests.support.service import RISKS, ROOT, serving
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


def places(path: Path) -> list[tuple[int, int, int]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        return runs(native.read_extents(fd, None))
    finally:
        os.close(fd)


def test_contents_stay_while_holders_store(client: Client, socket: str, file: Path) -> None:
    data = fragmented(file, 128)
    with ExitStack() as stack:
        holders = [stack.enter_context(Holder(socket, file, n)) for n in range(3)]
        before = places(file)
        job = relocated(client, file, Goal(to=str(file.parent)))
        after = places(file)
        audit = client.call(Audit).result
        assert isinstance(audit, AuditReport)
        assert not audit.drifted
    assert job.state is JobState.DONE, job
    assert job.result["moved"]
    assert {p for _, p, _ in before}.isdisjoint(p for _, p, _ in after)
    assert file.read_bytes() == as_stored(data, *holders)
    for holder in holders:
        assert len(holder.pauses) == len(job.result["pauses"])
        assert all(recall.quiesce and recall.state == "recalled" for recall in holder.recalls)
        assert holder.maps[-1].extents[0].physical == after[0][1]


def test_fewer_extents(client: Client, file: Path) -> None:
    data = fragmented(file, 64)
    before = places(file)
    job = relocated(client, file, Goal(defrag=True))
    if len(before) == 1:  # ext4 had room to join them
        assert not job.result["moved"]
        return
    assert job.result["moved"], job
    assert len(places(file)) == job.result["after"]["extents"] < len(before)
    assert file.read_bytes() == data
    again = relocated(client, file, Goal(defrag=True))
    assert not again.result["moved"]
    assert "extents" in again.result["reason"]


def test_aligned_extents(client: Client, file: Path) -> None:
    data = fragmented(file, 96)
    job = relocated(client, file, Goal(align=2 * MiB))
    assert job.result["moved"], job
    assert all((physical - logical) % (2 * MiB) == 0 for logical, physical, _ in places(file))
    assert file.read_bytes() == data


def test_holes_stay_holes(client: Client, file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(0)
        for at in (0, 3 * MiB, 7 * MiB):
            os.pwrite(opened.fileno(), os.urandom(PIECE), at)
        opened.truncate(9 * MiB + 123)
        os.fsync(opened.fileno())
    data, before = file.read_bytes(), places(file)
    job = relocated(client, file, Goal(to=str(file.parent)))
    assert job.result["moved"], job
    assert file.read_bytes() == data
    assert [(start, length) for start, _, length in places(file)] == [
        (start, length) for start, _, length in before
    ]


def test_without_the_exchange_feature() -> None:
    """mkfs.xfs of many systems leaves it out: then XFS_IOC_SWAPEXT is taken."""
    with mounted("xfs", mkfs_args=["-m", "reflink=1"], exchange=False) as point:
        path = point / "f"
        data = fragmented(path, 32)
        fd, donor = os.open(path, os.O_RDWR), os.open(point, os.O_TMPFILE | os.O_RDWR)
        try:
            os.pwrite(donor, data, 0)
            os.fsync(donor)
            before, size = places(path), len(data)
            sample = calls.start_commit(fd)
            with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
                calls.commit_range(fd, donor, size, sample)
            taken = os.fstat(fd)
            os.pwrite(fd, data[:1], 0)  # its times are others now
            with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
                calls.swap_extents(fd, donor, taken)
            assert places(path) == before
            os.fsync(fd)
            calls.swap_extents(fd, donor, os.fstat(fd))
            assert places(path) != before
            assert os.pread(fd, size, 0) == data
        finally:
            os.close(fd)
            os.close(donor)


def test_a_holder_that_returns_asks_anew(client: Client, socket: str, file: Path) -> None:
    """As one does that knows nothing of relocation."""
    data = fragmented(file, 32)
    with Client(socket) as holder:
        reply = granted(holder, file)
        job: list[object] = []
        thread = threading.Thread(
            target=lambda: job.append(relocated(client, file, Goal(to=str(file.parent))))
        )
        thread.start()
        next(push for push in holder.pushes(PATIENCE) if isinstance(push, Recall))
        os.close(reply.fds[0])
        assert holder.call(Return, seal=reply.seal.id).seal.state == "returned"
        thread.join(PATIENCE)
        again = granted(holder, file)
        os.close(again.fds[0])
        holder.call(Return, seal=again.seal.id)
    assert job
    assert file.read_bytes() == data


def test_called_off_when_a_holder_does_not_answer(client: Client, socket: str, file: Path) -> None:
    data = fragmented(file, 32)
    before = places(file)
    with Client(socket) as deaf, Holder(socket, file, within=0) as quick:
        reply = granted(deaf, file)
        job = relocated(client, file, Goal(to=str(file.parent)), grace=3.0)
        assert job.state is JobState.FAILED
        assert f"process {os.getpid()}" in job.error
        for seal in (reply.seal.id, quick.seal):
            assert client.call(Show, seal=seal).seal.state == "granted"
        until(lambda: len(quick.pauses) == 1)
        os.close(reply.fds[0])
        deaf.call(Return, seal=reply.seal.id)
    assert places(file) == before
    assert file.read_bytes() == data


def test_quiesce_needs_an_unmapped_range(client: Client, socket: str, file: Path) -> None:
    with Client(socket) as holder:
        reply = granted(holder, file)
        unasked = refusal(lambda: holder.call(Quiesce, seal=reply.seal.id))
        assert unasked.code == "bad-request"
        area = mmap.mmap(reply.fds[0], 0)
        goal = Goal(to=str(file.parent))
        job = client.call(Relocate, path=str(file), goal=goal, grace=200).result
        next(push for push in holder.pushes(PATIENCE) if isinstance(push, Recall))
        assert refusal(lambda: holder.call(Quiesce, seal=reply.seal.id)).code == "still-mapped"
        client.call(CancelJob, job=job.id)
        area.close()
        assert holder.call(Show, seal=reply.seal.id).seal.state == "granted"
        os.close(reply.fds[0])
        holder.call(Return, seal=reply.seal.id)


def test_a_truncation_in_the_pause_waits_for_the_seal(
    client: Client, socket: str, file: Path
) -> None:
    """It is held during the exchange, and recalls the seal after it."""
    data = fragmented(file, 32)
    with Client(socket) as holder:
        reply = granted(holder, file)
        goal = Goal(to=str(file.parent))
        job = client.call(Relocate, path=str(file), goal=goal, grace=200).result
        next(push for push in holder.pushes(PATIENCE) if isinstance(push, Recall))
        code = f"import os; os.truncate({str(file)!r}, {PIECE})"
        with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as intruder:
            time.sleep(0.3)
            assert intruder.poll() is None
            assert file.stat().st_size == len(data)
            os.close(reply.fds[0])
            holder.call(Quiesce, seal=reply.seal.id)
            pushes = (push for push in holder.pushes(PATIENCE) if isinstance(push, Recall))
            assert next(pushes).state == "granted"
            assert next(pushes).operation is not None
            assert intruder.poll() is None
            holder.call(Return, seal=reply.seal.id)
            assert intruder.wait(PATIENCE) == 0
        until(lambda: client.call(CancelJob, job=job.id).result.state != "running")
    assert file.read_bytes() == data[:PIECE]


def test_who_writes_in_every_pause_is_not_overwritten(xfs: Path) -> None:
    """The exchange is refused when the file changed after its times were sampled."""
    path = xfs / "busy"
    data = fragmented(path, 8)
    fd, donor = os.open(path, os.O_RDWR), os.open(xfs, os.O_TMPFILE | os.O_RDWR)
    try:
        os.pwrite(donor, data, 0)
        os.fsync(donor)
        sample = calls.start_commit(fd)
        os.pwrite(fd, b"new", 5)
        with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
            calls.commit_range(fd, donor, len(data), sample)
        assert os.pread(fd, 3, 5) == b"new"
    finally:
        os.close(fd)
        os.close(donor)
        path.unlink()


def test_the_dirty_log_sees_stores_and_writes(xfs: Path) -> None:
    path = xfs / "dirty"
    path.write_bytes(bytes(8 * MiB))
    fd = os.open(path, os.O_RDWR)
    log = DirtyLog("test", os.fstat(fd).st_ino)
    try:
        os.fsync(fd)
        log.take(8 * MiB)
        os.fsync(fd)
        assert log.take(8 * MiB) == []
        with mmap.mmap(fd, 0) as area:
            area[5 * MiB + 77] = 1
        os.pwrite(fd, b"x", 3 * MiB)
        found = log.take(8 * MiB)
        assert found is not None
        for at in (5 * MiB + 77, 3 * MiB):
            assert any(span.offset <= at < span.end for span in found), (at, found)
    finally:
        log.close()
        os.close(fd)
        path.unlink()


@pytest.mark.parametrize("lost", ["no log", "events lost"])
def test_without_a_log_everything_is_copied_again(
    xfs: Path, monkeypatch: pytest.MonkeyPatch, lost: str, tmp_path: Path
) -> None:
    path = xfs / "unlogged"
    data = fragmented(path, 16)

    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "no tracing here")

    if lost == "no log":
        monkeypatch.setattr(moving, "DirtyLog", none)
    else:
        monkeypatch.setattr(DirtyLog, "_lost", lambda _: True)
    st = path.stat()
    where = FileId(st.st_dev, st.st_ino)
    nothing = cast("Filesystem", None)
    target = Target(where, os.open(path, os.O_RDWR), str(path), st.st_size, nothing, writable=True)
    donor = os.open(xfs, os.O_TMPFILE | os.O_RDWR)
    native.allocate(donor, 0, len(data))
    os.ftruncate(donor, len(data))
    move = moving.Exchange("unlogged", target, donor, native.read_extents(target.fd, None))
    try:
        move.copy(lambda *_: None)
        os.pwrite(target.fd, b"changed", 300_000)
        assert move.swap(lambda *_: None)
    finally:
        move.close()
        os.close(target.fd)
    assert path.read_bytes() == data[:300_000] + b"changed" + data[300_007:]
    path.unlink()


def test_refusals(client: Client, file: Path, root: Path) -> None:
    empty = root / "empty"
    empty.touch()
    job = relocated(client, empty, Goal(defrag=True))
    assert job.state is JobState.FAILED
    assert "no blocks" in job.error
    empty.unlink()
    for goal in (Goal(), Goal(defrag=True, align=4096), Goal(align=12288)):
        assert refusal(lambda goal=goal: relocated(client, file, goal)).code == "bad-request"
    elsewhere = relocated(client, file, Goal(to=str(root)), grace=5)
    assert elsewhere.result["moved"]


@pytest.fixture
def shared(xfs: Path) -> Iterator[Path]:
    path, other = xfs / "shared", xfs / "other"
    path.write_bytes(os.urandom(MiB))
    subprocess.run(["cp", "--reflink=always", path, other], check=True)
    yield path
    path.unlink()
    other.unlink()


def test_shared_blocks_are_not_unshared(shared: Path, tmp_path: Path) -> None:
    with serving(tmp_path, [shared.parent], RISKS) as socket, Client(socket) as client:
        job = relocated(client, shared, Goal(defrag=True))
        assert job.state is JobState.FAILED
        assert "shares" in job.error


def test_the_command(socket: str, file: Path) -> None:
    fragmented(file, 32)
    sealctl = [sys.executable, "-m", "sealsvc.cli.sealctl", "--socket", socket]
    command = [*sealctl, "relocate", str(file), "--to", str(file.parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pauses" in done.stdout
