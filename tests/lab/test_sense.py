"""What a SCSI disk itself says about a read that it failed: the sense data, in the error's record.

The kernel's EILSEQ or ENODATA tells of none of it (docs/integrity-device.md)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.integrity.device_client import PiFile, PiIOError
from sealsvc.protocol.integrity import PiError, PiErrors, PiSense
from sealsvc.protocol.seals import Extents, Return
from tests.lab.pi_devices import MiB, mounted, scsi_disk, sh
from tests.support.service import RISKS, Running
from tests.support.waiting import until

pytestmark = [pytest.mark.lab(pmem=0, memory=1024), pytest.mark.timeout(1200)]
SLOW = 600.0
DRIVER = Path("/sys/bus/pseudo/drivers/scsi_debug")
PARAMETERS = Path("/sys/module/scsi_debug/parameters")
READ_10, READ_16 = 0x28, 0x88
OFFSET = 64 << 10


@pytest.fixture
def disk() -> Iterator[Path]:
    with scsi_disk(1) as made:
        yield made


@pytest.fixture
def held(disk: Path, tmp_path: Path) -> Iterator[tuple[Client, str, PiFile]]:
    """A client, its seal, and the PI channel of that."""
    with mounted(disk, tmp_path / "fs") as point:
        (point / "before").write_bytes(
            bytes(8 * MiB)
        )  # the file lies behind block 1234h: see below
        os.sync()
        path = point / "file"
        path.write_bytes(os.urandom(MiB))
        with path.open("rb") as file:
            os.fsync(file.fileno())
        running = Running(tmp_path, [point], RISKS + '[enforcers]\nuse = ["fanotify"]\n')
        running.start()
        until(running.socket.exists, SLOW, "the service's socket")
        running.ready()
        try:
            with Client(str(running.socket), timeout=SLOW) as client:
                reply = client.grant(path=str(path), kind="exclusive")
                pi = PiFile.open(client, reply.seal.id)
                try:
                    yield client, reply.seal.id, pi
                finally:
                    pi.close()
                    os.close(reply.fds[0])
                    client.call(Return, seal=reply.seal.id)
        finally:
            running.end()


def failed_read(client: Client, pi: PiFile, length: int) -> tuple[int, PiError]:
    """The errno of a read at OFFSET, and its record."""
    heard = client.call(PiErrors, after=2**53).result.next
    with pytest.raises(PiIOError) as caught:
        pi.readv(OFFSET, [bytearray(length)])
    [error] = client.call(PiErrors, after=heard, wait=SLOW / 2).result.errors
    return caught.value.errno or 0, error


@contextmanager
def refusing(disk: Path, qualifier: int) -> Iterator[None]:
    """Each read is answered with ABORTED COMMAND, 10h and this qualifier."""
    if not Path("/sys/kernel/debug/scsi_debug").exists():
        sh("mount", "-t", "debugfs", "none", "/sys/kernel/debug")
    unit = Path(f"/sys/block/{disk.name}/device").resolve().name
    rules = Path("/sys/kernel/debug/scsi_debug", unit, "error")
    for command in (READ_10, READ_16):
        rules.write_text(f"2 -1000000 {command:#x} 0 0 0x2 0xb 0x10 {qualifier:#x}\n")
    try:
        yield
    finally:
        for command in (READ_10, READ_16):
            rules.write_text(f"- 2 {command:#x}\n")


@pytest.mark.parametrize(("qualifier", "field"), [(1, "checksum"), (2, "tag"), (3, "reftag")])
def test_the_disk_names_the_field(
    disk: Path, held: tuple[Client, str, PiFile], qualifier: int, field: str
) -> None:
    client, seal, pi = held
    with refusing(disk, qualifier):
        number, error = failed_read(client, pi, 8192)
    assert number == errno.EILSEQ
    assert (error.kind, error.at, error.checker, error.seal) == ("refused", "read", "device", seal)
    assert (error.field, error.offset, error.length) == (field, OFFSET, 512)
    assert error.sense == PiSense(key=0x0B, asc=0x10, ascq=qualifier)
    assert pi.readv(OFFSET, [bytearray(8192)]) == 8192


def test_a_medium_that_cannot_be_read_is_told(disk: Path, held: tuple[Client, str, PiFile]) -> None:
    client, seal, pi = held
    [extent] = client.call(Extents, seal=seal).result.extents
    place = extent.physical + OFFSET
    # scsi_debug names the first block of the command, and never one before block 1234h.
    assert place // 512 > 0x1234
    (PARAMETERS / "medium_error_start").write_text(str(place // 512))
    (PARAMETERS / "medium_error_count").write_text("1")
    (DRIVER / "opts").write_text("0x2")
    try:
        number, error = failed_read(client, pi, 4096)
    finally:
        (DRIVER / "opts").write_text("0")
    assert number in (errno.ENODATA, errno.EIO)
    assert (error.kind, error.errno) == ("unreadable", number)
    assert error.sense == PiSense(key=0x03, asc=0x11, ascq=0x00)
    assert (error.offset, error.length, error.physical) == (OFFSET, 512, place)
    assert error.field == ""
