"""Errors that the kernel reports of a file system: FAN_FS_ERROR on a real ext4."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.integrity.filesystem_errors import FsError, parse
from sealsvc.protocol.integrity import PiError, PiErrors
from tests.integrity.conftest import Ground, attach, give_back, sealed
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running
from tests.support.waiting import until

pytestmark = pytest.mark.kernel
INODE_SIZE = 256
DAMAGED = (errno.EUCLEAN, errno.EBADMSG)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Ground]:
    arguments = ["-I", str(INODE_SIZE), "-O", "metadata_csum"]
    with mounted("ext4", mkfs_args=arguments, mount_args=["-o", "errors=continue"]) as point:
        running = Running(tmp_path, [point], RISKS)
        running.start()
        try:
            running.ready()
            yield Ground(point, running)
        finally:
            running.end()


def trigger(point: Path) -> None:
    """As damaged metadata would (fs/ext4/sysfs.c trigger_test_error)."""
    device = os.stat(point).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    Path("/sys/fs/ext4", name, "trigger_fs_error").write_text("a test")


def tells(client: Client, point: Path, after: int) -> bool:
    trigger(point)
    return bool(client.call(PiErrors, after=after, wait=1).result.errors)


def told(client: Client, after: int) -> PiError:
    page = client.call(PiErrors, after=after, wait=60).result
    assert page.errors
    return page.errors[0]


def is_damaged(path: Path) -> bool:
    """Looked at once more, if nobody has it open just now."""
    Path("/proc/sys/vm/drop_caches").write_text("3")
    try:
        path.stat()
    except OSError as error:
        return error.errno in DAMAGED
    return False


def now(client: Client) -> int:
    return client.call(PiErrors, after=2**53).result.next


def test_an_error_of_a_file_system_is_told(ext4: Ground) -> None:
    with ext4.client() as client:
        seal, fd = sealed(client, ext4.file("sealed"))
        heard = now(client)
        until(lambda: tells(client, ext4.point, heard), 60, "the file system is watched")
        error = told(client, heard)
        assert (error.kind, error.at, error.errno) == ("filesystem", "kernel", errno.EUCLEAN)
        assert (error.file.device, error.file.inode) == (os.stat(ext4.point).st_dev, 0)
        assert (error.path, error.seal, error.attachment) == ("", None, "")
        give_back(client, seal, fd)
        # It is watched from then on, and by the next service without a seal: tags are kept there.
        seal, fd = sealed(client, ext4.file("tagged"))
        attach(client, seal)
        give_back(client, seal, fd)
    ext4.running.stop()
    ext4.running.start()
    ext4.running.ready()
    with ext4.client() as client:
        heard = now(client)
        until(lambda: tells(client, ext4.point, heard), 60, "the next service watches")
        assert told(client, heard).kind == "filesystem"


def test_an_inode_that_cannot_be_read_is_named(ext4: Ground) -> None:
    path = ext4.file("damaged")
    with ext4.client() as client:
        seal, fd = sealed(client, path)
        attachment = attach(client, seal)
        give_back(client, seal, fd)
        heard = now(client)
        inode = path.stat().st_ino
        for way in ("-f", "-u"):  # its block leaves the journal, which would keep it in memory
            subprocess.run(["fsfreeze", way, str(ext4.point)], check=True)
        asked = ["debugfs", "-R", f"imap <{inode}>", str(ext4.image)]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        block, offset = re.search(r"block (\d+), offset 0x([0-9a-f]+)", said).groups()  # type: ignore[union-attr]
        size = os.statvfs(ext4.point).f_bsize
        ext4.corrupt(int(block) * size + int(offset, 16) + INODE_SIZE - 8, b"\xa5" * 8)
        until(lambda: is_damaged(path), 60, "the inode is read again")
        error = told(client, heard)
        assert (error.kind, error.path) == ("filesystem", str(path))
        assert error.attachment == attachment.id
        assert error.file.inode == inode
        assert error.errno in DAMAGED


def record(kind: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, 0, 4 + len(body)) + body


def event(mask: int, *records: bytes) -> bytes:
    body = b"".join(records)
    return struct.pack("<IBBHQii", 24 + len(body), 3, 0, 24, mask, -1, 0) + body


def test_events_are_read() -> None:
    fsid = bytes(range(8))
    ext = record(1, fsid + struct.pack("<IiII", 8, 1, 12, 34))
    xfs = record(1, fsid + struct.pack("<IiQI", 12, 0x81, 1 << 40, 7))
    none = record(1, fsid + struct.pack("<Ii", 0, 0xFF))
    error = record(5, struct.pack("<iI", errno.EUCLEAN, 3))
    unknown = record(77, b"1234")
    data = b"".join(
        [
            event(0x8000, ext, error),
            event(0x8000, error, unknown, xfs),
            event(0x2, ext),  # FAN_MODIFY
            event(0x8000, none, error),
            event(0x8000),
        ]
    )
    found = list(parse(data + event(0x8000, ext, error)[:30]))
    assert found == [
        FsError(fsid, 12, 34, errno.EUCLEAN, 3),
        FsError(fsid, 1 << 40, 7, errno.EUCLEAN, 3),
        FsError(fsid, 0, 0, errno.EUCLEAN, 3),
        FsError(bytes(8), 0, 0, 0, 1),
    ]
    assert list(parse(event(0x8000, struct.pack("<BBH", 1, 0, 0)))) == [
        FsError(bytes(8), 0, 0, 0, 1)
    ]
