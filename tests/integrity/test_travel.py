"""Tags that go with a copy: true of what was copied, and never of what was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.integrity import engine
from sealsvc.integrity.profiles import parse
from sealsvc.integrity.store import BlockState, open_all
from sealsvc.linux import native
from sealsvc.protocol.admin import CancelJob, JobState, ShowJob
from sealsvc.protocol.copies import StartCopy
from sealsvc.protocol.integrity import PiAttachments, PiErrors
from sealsvc.protocol.relocation import Goal, Relocate
from tests.faults.conftest import serve
from tests.integrity.conftest import BLOCK, Ground, MiB, attach, give_back, sealed, verify
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel
BLOCKS = MiB // BLOCK


def tagged(
    ground: Ground, client: Client, name: str, profile: str = "t10-dif1-4096", **more: Any
) -> Any:
    """A file with an attachment, no longer sealed."""
    seal, fd = sealed(client, ground.file(name))
    made = attach(client, seal, profile, **more)
    give_back(client, seal, fd)
    return made


def place_of(path: Path, offset: int) -> int:
    """Where a byte of a file lies on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        for logical, physical, length, _ in native.read_extents(fd, None).tolist():
            if logical <= offset < logical + length:
                return physical + offset - logical
    finally:
        os.close(fd)
    raise AssertionError(f"{path} has no byte {offset}")


def damage(ground: Ground, path: Path, offset: int, data: bytes) -> None:
    """On the disk, of a file that nobody has in the page cache."""
    ground.corrupt(place_of(path, offset), data)
    with path.open("rb") as file:

        def dropped() -> bool:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return not native.cached_pages(file.fileno(), 0, path.stat().st_size)

        until(dropped, what="an empty page cache")


def begun(client: Client, a: Path, b: Path, **asked: Any) -> str:
    fds = [os.open(a, os.O_RDONLY), os.open(b, os.O_RDWR | os.O_CREAT, 0o600)]
    if a == b:
        os.close(fds.pop(0))
    try:
        return client.call(StartCopy, fds, **asked).result.id
    finally:
        for fd in fds:
            os.close(fd)


def ended(client: Client, job: str) -> Any:
    def over() -> Any:
        found = client.call(ShowJob, job=job).result
        return found if found.state is not JobState.RUNNING else None

    until(over, what="the job's end")
    return over()


def copied(client: Client, a: Path, b: Path, **asked: Any) -> Any:
    job = ended(client, begun(client, a, b, **asked))
    assert job.state is JobState.DONE, job.error
    assert job.result["whole"], job.result
    return job.result


def sealctl(socket: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "sealsvc.cli.sealctl", "--socket", socket)
    return subprocess.run(
        (*command, *map(str, arguments)), capture_output=True, text=True, check=False
    )


def attachment_of(client: Client, path: Path) -> Any:
    (found,) = client.call(PiAttachments, path=str(path)).result.attachments
    return found


@pytest.mark.parametrize("strategy", ["clone", "range", "direct", "plain"])
@pytest.mark.parametrize("profile", ["t10-dif1-4096", "t10-dif3-4096", "nvme64-sts16-4096"])
def test_tags_go_with_the_bytes(ground, client, strategy, profile):
    name = f"{strategy}-{profile}"
    path, there = ground.point / f"a-{name}", ground.point / f"b-{name}"
    tagged(ground, client, path.name, profile, tag=7)
    result = copied(client, path, there, strategies=[strategy])
    assert result["bytes_by_strategy"] == {strategy: MiB}
    (row,) = result["tags"]
    assert (row["new"], row["kept"], row["blocks"]) == (True, True, {"clean": BLOCKS, "suspect": 0})
    made = attachment_of(client, there)
    assert (made.id, made.profile) == (row["attachment"], profile)
    assert verify(client, made).blocks == {"good": BLOCKS}
    damage(ground, there, 9 * BLOCK + 5, b"!")
    report = verify(client, made)
    assert [(e.kind, e.block) for e in report.errors] == [("corrupt", 9)]


def test_reference_tags_are_those_of_the_new_place(ground, client):
    """A range to another offset: the guard goes along, the block's number is another."""
    path, there = ground.point / "from", ground.file("to", 2 * MiB)
    source = tagged(ground, client, "from")
    result = copied(client, path, there, offset=BLOCK, length=20 * BLOCK + 100, to=300 * BLOCK)
    (row,) = result["tags"]
    assert row["range"] == {"offset": 300 * BLOCK, "length": 20 * BLOCK}
    assert row["uncovered"] == 100
    made = attachment_of(client, there)
    assert verify(client, made).blocks == {"good": 20}
    assert verify(client, source).blocks == {"good": BLOCKS}


def test_an_offset_between_blocks_has_tags_made_anew(ground, client):
    path, there = ground.point / "even", ground.file("odd", 2 * MiB)
    tagged(ground, client, "even")
    damage(ground, path, 17 * BLOCK + 1, b"?")
    result = copied(client, path, there, length=64 * BLOCK, to=MiB + 512, strategies=["plain"])
    (row,) = result["tags"]
    # One block of the source lies below two of the destination.
    assert (row["kept"], row["blocks"]) == (False, {"clean": 61, "suspect": 2})
    report = verify(client, attachment_of(client, there))
    assert report.blocks == {"good": 61, "suspect": 2}
    assert sorted({error.block for error in report.errors}) == [16, 17]


@pytest.mark.parametrize("strategy", ["clone", "range", "direct", "plain"])
def test_a_corrupt_block_is_never_copied_as_good(ground, client, strategy):
    path, there = ground.point / f"bad-{strategy}", ground.point / f"bad-{strategy}-b"
    source = tagged(ground, client, path.name)
    damage(ground, path, 33 * BLOCK + 8, b"\xff\x00")
    before = client.call(PiErrors, after=0).result
    while before.errors:
        before = client.call(PiErrors, after=before.next).result
    result = copied(client, path, there, strategies=[strategy])
    (row,) = result["tags"]
    assert row["blocks"] == {"clean": BLOCKS - 1, "suspect": 1}
    (error,) = client.call(PiErrors, after=before.next).result.errors
    assert (error.kind, error.at, error.block) == ("corrupt", "copy", 33)
    assert (error.attachment, error.path) == (source.id, str(path))
    report = verify(client, attachment_of(client, there))
    assert report.blocks == {"good": BLOCKS - 1, "suspect": 1}
    (found,) = report.errors
    assert (found.block, found.field) == (33, "checksum")  # the source's tag went along
    assert found.expected != found.found


def test_suspect_blocks_stay_suspect(ground, client):
    """Even where the data agrees by now."""
    path, there = ground.point / "doubt", ground.point / "doubt-b"
    source = tagged(ground, client, "doubt")
    place, right = place_of(path, 3 * BLOCK), path.read_bytes()[3 * BLOCK : 3 * BLOCK + 1]
    ground.corrupt(place, bytes([right[0] ^ 1]))
    assert verify(client, source).verdict == "corrupt"
    ground.corrupt(place, right)
    (row,) = copied(client, path, there, strategies=["direct"])["tags"]
    assert row["blocks"] == {"clean": BLOCKS - 1, "suspect": 1}
    assert verify(client, attachment_of(client, there)).verdict == "suspect"


def test_into_a_file_that_has_tags(ground, client):
    """Of another profile: they are made anew, of what was verified; and its other blocks keep
    theirs. A suspect block that is overwritten with verified bytes is clean."""
    path, there = ground.point / "one", ground.point / "two"
    tagged(ground, client, "one")
    old = tagged(ground, client, "two", "crc32c-4k")
    damage(ground, there, 12 * BLOCK, b"x")
    assert verify(client, old).blocks["corrupt"] == 1
    result = copied(client, path, there, offset=0, length=64 * BLOCK, in_place=True)
    (row,) = result["tags"]
    assert (row["attachment"], row["new"], row["kept"]) == (old.id, False, False)
    assert row["blocks"] == {"clean": 64, "suspect": 0}
    assert verify(client, old).blocks == {"good": BLOCKS}


def test_within_one_file(ground, client):
    path = ground.point / "self"
    made = tagged(ground, client, "self")
    (row,) = copied(client, path, path, length=16 * BLOCK, to=100 * BLOCK)["tags"]
    assert (row["attachment"], row["kept"]) == (made.id, True)
    assert verify(client, made).blocks == {"good": BLOCKS}
    data = path.read_bytes()
    assert data[: 16 * BLOCK] == data[100 * BLOCK : 116 * BLOCK]


def test_sealctl_says_what_became_of_them(ground, client):
    path, there = ground.point / "told", ground.point / "told-b"
    tagged(ground, client, "told")
    done = sealctl(ground.socket, "copy", path, there)
    assert done.returncode == 0, done.stderr
    made = attachment_of(client, there)
    assert f"tags kept in attachment {made.id}: {BLOCKS} clean blocks" in done.stderr
    damage(ground, path, 7 * BLOCK, b"~")
    done = sealctl(ground.socket, "copy", "--only", "direct", path, there)
    assert done.returncode == 1
    assert f"{BLOCKS - 1} clean, 1 suspect blocks" in done.stderr


@pytest.mark.parametrize("profile", ["sha256-stream", "hmac-sha256-stream", "ed25519-stream"])
def test_byte_streams(ground, client, profile):
    from sealsvc.protocol.integrity import PiTag

    path, there = ground.file(profile), ground.point / f"{profile}-b"
    seal, fd = sealed(client, path)
    secret = {"h": "mine", "e": "signer"}.get(profile[0], "")
    attach(client, seal, profile, secret=secret)
    for part in ((0, 1000), (5000, 777), (MiB - 10, 10)):
        client.call(PiTag, seal=seal.id, range=ByteRange(*part))
    give_back(client, seal, fd)
    damage(ground, path, 5100, b"!!")
    (row,) = copied(client, path, there, strategies=["direct"])["tags"]
    assert row["blocks"] == {"clean": 2, "suspect": 1}
    report = verify(client, attachment_of(client, there))
    assert report.blocks == {"good": 2, "suspect": 1}
    assert (report.errors[0].offset, report.errors[0].length) == (5000, 777)


def test_a_cancelled_copy_leaves_what_it_did_not_write_clean(ground, client):
    path, there = ground.point / "slow", ground.point / "slow-b"
    tagged(ground, client, "slow")
    old = tagged(ground, client, "slow-b")
    job = begun(client, path, there, in_place=True, throttle=32 << 10, strategies=["plain"])
    until(lambda: client.call(ShowJob, job=job).result.done >= 8 * BLOCK)
    marked = attachment_of(client, there).blocks
    assert marked["suspect"] == BLOCKS  # while it may be written
    client.call(CancelJob, job=job)
    found = ended(client, job)
    assert found.state is JobState.CANCELLED
    (row,) = found.result["tags"]
    done = found.result["done"] // BLOCK
    assert 0 < done < BLOCKS
    blocks = attachment_of(client, there).blocks
    assert blocks["clean"] + blocks["suspect"] == BLOCKS
    assert blocks["suspect"] == row["blocks"]["suspect"] <= 1
    report = verify(client, old)
    assert "corrupt" not in report.blocks
    assert "changed" not in report.blocks


def test_a_relocation_keeps_tags_and_names_what_was_wrong(ground, client):
    path = ground.file("moved", 4 * MiB)
    seal, fd = sealed(client, path)
    made = attach(client, seal)
    give_back(client, seal, fd)
    damage(ground, path, 2 * MiB, b"#")
    old = place_of(path, 0)
    job = client.call(Relocate, path=str(path), goal=Goal(align=MiB)).result.id
    found = ended(client, job)
    assert found.state is JobState.DONE, found.error
    if not found.result["moved"]:
        pytest.skip("the file lies well already")
    assert place_of(path, 0) != old
    (row,) = found.result["tags"]
    assert row["blocks"] == {"good": 4 * BLOCKS - 1, "suspect": 1}
    # Nobody wrote to it: what is damaged now is corrupt, not merely changed.
    damage(ground, path, 3 * MiB, b"#")
    assert verify(client, made).blocks == {"good": 4 * BLOCKS - 2, "corrupt": 1, "suspect": 1}


# Killed


@contextmanager
def _own(tmp_path: Path) -> Iterator[Ground]:
    with mounted("xfs", mkfs_args=["-m", "reflink=1"]) as point:
        running = Running(tmp_path, [point], RISKS)
        try:
            yield Ground(point, running)
        finally:
            running.end()


def wrong_but_clean(ground: Ground, path: Path) -> int:
    """With no service there: blocks of a file that are called clean and are not, found by the
    engine."""
    stores, errors = open_all(ground.running.directory / "registry/integrity")
    assert not errors
    wrong = 0
    for store in stores:
        try:
            if store.about.path != str(path):
                continue
            profile = parse(store.about.profile, "store")
            span = store.about.range
            data = Path(store.about.path).read_bytes()[span.offset : span.end]
            number = span.offset // profile.granularity
            _, found = engine.verify(
                profile,
                data,
                store.tags(0, store.blocks),
                engine.Values(number, number),
                most=store.blocks * 3,
            )
            states = store.states(0, store.blocks)
            wrong += sum(states[error.block] == BlockState.CLEAN for error in found)
        finally:
            store.close()
    return wrong


# The attachments before the copy pass integrity:built once each, and their returns the two others.
@pytest.mark.parametrize(
    ("point", "into"),
    [
        ("integrity:travel-marked", "old"),
        ("integrity:travel-copied", "new"),
        ("integrity:travel-copied", "old"),
        ("integrity:built@2", "new"),
        ("integrity:marked@2", "new"),
        ("integrity:tagged@2", "new"),
        ("integrity:tagged@3", "old"),
        ("integrity:travelled", "new"),
    ],
)
def test_killed_at_each_step(tmp_path, point, into):
    """A corrupt source block is among what is copied: whatever step the service dies at, no block
    of the destination is called clean that is not as tagged."""
    name, _, number = point.partition("@")
    with _own(tmp_path) as ground:
        path, there = ground.point / "a", ground.point / "b"
        serve(ground.running, f"{name}=kill" + (f"@{number}" if number else ""))
        ground.running.ready()
        with ground.client() as client:
            tagged(ground, client, "a")
            if into == "old":
                tagged(ground, client, "b")
            damage(ground, path, 5 * BLOCK, b"?")
            with suppress(Refusal):  # at the first steps the service may die before it has answered
                begun(client, path, there, in_place=True, strategies=["direct"])
        assert ground.running.process.wait(PATIENCE) == -signal.SIGKILL
        assert wrong_but_clean(ground, there) == 0
        serve(ground.running)
        ground.running.ready()
        with ground.client() as client:
            found = client.call(PiAttachments, path=str(there)).result.attachments
            for made in found:
                report = verify(client, made)
                assert set(report.blocks) <= {"good", "suspect"}, report
                assert report.blocks["suspect"] >= 1
            # Made again, it is what it would have been.
            result = copied(client, path, there, in_place=True, strategies=["direct"])
            (row,) = result["tags"]
            assert row["blocks"] == {"clean": BLOCKS - 1, "suspect": 1}


def test_the_copying_process_is_killed(ground, client):
    """The tags of what it may have written stay suspect, all else is as it was."""
    path, there = ground.point / "killed", ground.point / "killed-b"
    tagged(ground, client, "killed")
    old = tagged(ground, client, "killed-b")
    job = begun(client, path, there, in_place=True, throttle=32 << 10, strategies=["plain"])
    until(lambda: client.call(ShowJob, job=job).result.done >= 8 * BLOCK)
    service = ground.running.process.pid
    for child in Path(f"/proc/{service}/task/{service}/children").read_text().split():
        if b"sealsvc.copies" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    found = ended(client, job)
    assert found.state is JobState.FAILED
    report = verify(client, old)
    assert set(report.blocks) <= {"good", "suspect"}
    assert report.blocks["good"] > 0
    assert report.blocks["suspect"] >= 8
