"""What happens around a sealed file, where it takes devices of its own: docs/environment.md."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import List, Recall
from sealsvc.protocol.system import Audit, Status
from tests.lab.dax_files import extents, make
from tests.lab.pmem import mounted_dax
from tests.service.test_environment import (
    AUDIT_INTERVAL,
    alarms,
    deaths,
    give_back,
    other_alarms,
    sealed,
    unharmed,
)
from tests.service.test_seal_ends import holding, punch, state
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
MiB = 1 << 20
SECTOR = 512
DEVICE_SECTORS = 512 * MiB // SECTOR


def sh(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@contextmanager
def serving(directory: Path, *roots: Path) -> Iterator[Running]:
    running = Running(directory, [*roots], RISKS)
    config = running.config.read_text()
    running.config.write_text(config.replace("[service]\n", f"[service]\n{AUDIT_INTERVAL}"))
    running.start()
    try:
        until(lambda: running.log.exists() and running.socket.exists(), PATIENCE)
        running.ready()
        yield running
    finally:
        running.end()


def connected(running: Running) -> Client:
    return Client(str(running.socket), timeout=PATIENCE)


# The device goes, or hangs


@contextmanager
def linear(name: str = "below", start: int = 0) -> Iterator[str]:
    """A device that can be made to fail, from sector `start` of persistent memory on."""
    sh("modprobe", "dm_mod")
    table = f"0 {DEVICE_SECTORS} linear /dev/pmem0 {start}"
    sh("dmsetup", "create", "--noudevsync", name, "--table", table)
    sh("dmsetup", "mknodes")
    try:
        yield f"/dev/mapper/{name}"
    finally:
        sh("dmsetup", "remove", "--noudevsync", name)


@contextmanager
def mounted_on(device: str, fstype: str, point: Path, options: str = "defaults") -> Iterator[Path]:
    sh(f"mkfs.{fstype}", "-q", {"xfs": "-f", "ext4": "-F"}[fstype], device)
    point.mkdir()
    sh("mount", "-t", fstype, "-o", options, device, point)
    try:
        yield point
    finally:
        until(lambda: subprocess.run(["umount", point], check=False).returncode == 0, PATIENCE)


def writable(point: Path) -> bool:
    """A file system notices that its device fails when its journal is next written."""
    try:
        (point / "new").touch()
        (point / "new").unlink()
    except OSError:
        return False
    os.sync()
    return True


@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_the_device_is_removed(fstype: str, tmp_path: Path) -> None:
    with (
        linear() as device,
        mounted_on(device, fstype, tmp_path / "mount") as point,
        serving(tmp_path, point) as running,
        connected(running) as client,
    ):
        file = make(point / "file", MiB)
        seal = sealed(client, file)
        # It is in use: what --force does is to put a table of errors in its place.
        subprocess.run(["dmsetup", "remove", "--noudevsync", "--force", "below"], check=False)
        until(lambda: not writable(point), PATIENCE)
        if fstype == "xfs":
            until(lambda: state(client, seal.id) == "lost", PATIENCE)
            [told] = deaths(str(running.socket))
            assert "1 seals are lost" in told
            refused = refusal(lambda: client.grant(path=str(file), kind="shared"))
            assert refused.details["errno"] == errno.EPERM
            give_back(client, seal.id)
            assert client.call(Audit).result.unreadable == []
            assert len(deaths(str(running.socket))) == 1
        else:
            # It is read-only from now on, and knows the map.
            refused = refusal(lambda: client.grant(path=str(file), kind="shared"))
            assert refused.details["errno"] == errno.EROFS
            unharmed(client, seal.id)
            assert other_alarms(str(running.socket)) == []


def fragmented(path: Path, blocks: int) -> Path:
    """Allocated backwards, so that no two blocks are one extent: ext4 keeps such a map outside of
    the inode."""
    with path.open("w+b") as file:
        for number in reversed(range(blocks)):
            os.posix_fallocate(file.fileno(), number * 4096, 4096)
        os.pwrite(file.fileno(), bytes(blocks * 4096), 0)
        os.fsync(file.fileno())
    assert len(extents(path)) > blocks // 2
    return path


def nothing_cached() -> bool:
    """Some of it goes only when something else has. Programs go too: without a pause the service
    does nothing but read itself from the disk again."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    time.sleep(1)
    return True


@pytest.mark.lab(pmem=(1024, 1024))
def test_a_device_that_hangs_keeps_no_other_waiting(tmp_path: Path) -> None:
    with (
        linear() as device,
        mounted_on(device, "ext4", tmp_path / "mount") as point,
        mounted_dax("ext4", device="/dev/pmem1") as elsewhere,
        serving(tmp_path, point, elsewhere) as running,
        connected(running) as client,
    ):
        hung = sealed(client, fragmented(point / "file", 64))
        fine = sealed(client, make(elsewhere / "file", MiB))
        sh("fsfreeze", "--freeze", point)  # what the journal still has cannot be dropped
        sh("fsfreeze", "--unfreeze", point)
        sh("dmsetup", "suspend", "--noudevsync", "--noflush", "--nolockfs", "below")
        try:
            until(lambda: nothing_cached() and alarms(str(running.socket)) != [], PATIENCE)
            report = client.call(Audit).result
            assert report.checked == 1
            assert [line.split(":")[0] for line in report.unreadable] == [hung.id]
            assert "does not answer" in report.unreadable[0]
            assert state(client, hung.id) == "granted"
            unharmed(client, fine.id)
            unharmed(client, sealed(client, make(elsewhere / "other", MiB)).id)
            assert client.call(Status).result.seals == {"granted": 1}
        finally:
            sh("dmsetup", "resume", "--noudevsync", "below")
        until(lambda: client.call(Audit).result.checked == 1, PATIENCE)
        unharmed(client, hung.id)
        [told] = alarms(str(running.socket))
        assert "does not answer" in told


# Quotas


def test_no_quota_to_prepare(tmp_path: Path) -> None:
    with (
        mounted_on("/dev/pmem0", "xfs", tmp_path / "mount", "uquota") as point,
        serving(tmp_path, point) as running,
        connected(running) as client,
    ):
        sh("xfs_quota", "-x", "-c", "limit bhard=1m 1234", point)
        file = point / "file"
        file.touch()
        os.truncate(file, 64 * MiB)
        os.chown(file, 1234, 1234)
        refused = refusal(lambda: client.grant(path=str(file), kind="shared", prepare=["allocate"]))
        assert refused.code == "io-error"
        assert refused.details["call"] == "fallocate"
        assert refused.details["errno"] == errno.EDQUOT
        assert "the quota of user 1234" in refused.message
        assert punch(file).wait(PATIENCE) == 0
        assert client.call(List).result.seals == []


# Memory that fails

# For the holder of tests/service/test_seal_ends.py: maps synchronously, and has the kernel believe
# that the third page has failed.
POISON = """
mapping.close()
mapping = mmap.mmap(fd, 0, flags=0x80003, prot=3)
mapping[:] = bytes(len(mapping))
sys.stdin.readline()
mapping.madvise(100, 8192, 4096)
"""
SURVIVE = """
got = []
signal.signal(signal.SIGBUS, lambda number, frame: got.append(number))
{poison}
print("SIGBUS" if got else "nothing", flush=True)
mapping.close()
client.call(Return, seal=reply.seal.id)
print("returned", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_memory_that_fails_ends_a_holder_that_touches_it(fstype: str, tmp_path: Path) -> None:
    with (
        mounted_dax(fstype) as point,
        serving(tmp_path, point) as running,
        connected(running) as client,
    ):
        file = make(point / "file", MiB)
        stays = sealed(client, file)
        before = extents(file)
        with poisoned(running, file, POISON) as (process, seal):
            assert process.wait(PATIENCE) == -7
            until(lambda: state(client, seal) == "over", PATIENCE)
        # The kernel tells nobody else: whoever holds another seal keeps it, and the map stands.
        assert Path("/sys/block/pmem0/badblocks").read_text().strip() == ""
        assert (extents(file) == before).all()
        assert alarms(str(running.socket)) == []
        unharmed(client, stays.id)
        with poisoned(running, file, SURVIVE.format(poison=POISON)) as (process, seal):
            assert process.stdout is not None
            assert process.stdout.readline() == b"SIGBUS\n"
            assert process.stdout.readline() == b"returned\n"
            assert state(client, seal) == "over"


@contextmanager
def poisoned(
    running: Running, file: Path, code: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    code = f"from sealsvc.protocol.seals import Return\n{code}"
    with holding(str(running.socket), file, code) as (process, seal):
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        yield process, seal


@contextmanager
def partition() -> Iterator[tuple[str, int]]:
    start = 4 * MiB
    sh("addpart", "/dev/pmem0", "1", str(start // SECTOR), str(DEVICE_SECTORS))
    until(lambda: Path("/dev/pmem0p1").exists(), PATIENCE)
    try:
        yield "/dev/pmem0p1", start
    finally:
        sh("delpart", "/dev/pmem0", "1")


@contextmanager
def whole() -> Iterator[tuple[str, int]]:
    yield "/dev/pmem0", 0


@contextmanager
def mapper() -> Iterator[tuple[str, int]]:
    """Behind what the tests above have made bad: it stays so."""
    start = 256 * MiB
    with linear(start=start // SECTOR) as device:
        yield device, start


@pytest.mark.parametrize("below", [whole, partition, mapper], ids=lambda f: f.__name__)
def test_a_bad_range_is_told_and_the_seal_asked_back(below, tmp_path: Path) -> None:
    with (
        below() as (device, base),
        mounted_on(device, "ext4", tmp_path / "mount", "dax=always") as point,
        serving(tmp_path, point) as running,
        connected(running) as client,
    ):
        seal, another = (sealed(client, make(point / name, MiB)) for name in ("file", "another"))
        place = int(extents(point / "file")[0, 1]) + 8192
        bad = Path("/sys/block/pmem0/badblocks")
        bad.write_text(f"{(base + place) // SECTOR} 8")
        recall = next(client.pushes(PATIENCE))
        assert isinstance(recall, Recall)
        assert (recall.seal, recall.reason) == (seal.id, "media error at 8192")
        [told] = alarms(str(running.socket), seal.id)
        assert f"{seal.id} of {point}/file: media error at 8192" in told
        assert f"bytes {place} to {place + 4095}" in told
        report = client.call(Audit, seal=seal.id).result
        assert (report.checked, report.drifted) == (1, [])  # its map has not moved
        give_back(client, seal.id)
        time.sleep(6)  # another look at it
        assert len(alarms(str(running.socket), seal.id)) == 1
        unharmed(client, another.id)
