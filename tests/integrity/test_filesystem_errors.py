"""Errors that the kernel reports of a file system: FAN_FS_ERROR on a real ext4, and the process
that hears them. XFS's own monitor: tests/lab/test_health_monitor.py."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.integrity.kernel import fanotify, wire, xfs
from sealsvc.integrity.kernel.wire import KernelError
from sealsvc.protocol.integrity import PiError, PiErrors
from sealsvc.protocol.seals import Recall, Reclaim
from tests.integrity.conftest import Ground, attach, give_back, sealed
from tests.support.scratch import mounted
from tests.support.service import RISKS, ROOT, Running, served
from tests.support.waiting import until

pytestmark = pytest.mark.kernel
INODE_SIZE = 256
DAMAGED = (errno.EUCLEAN, errno.EBADMSG)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Ground]:
    arguments = ["-I", str(INODE_SIZE), "-O", "metadata_csum"]
    with (
        mounted("ext4", mkfs_args=arguments, mount_args=["-o", "errors=continue"]) as point,
        served(Running(tmp_path, [point], RISKS)) as running,
    ):
        yield Ground(point, running)


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
        until(lambda: tells(client, ext4.point, heard), 120, "the file system is watched")
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
        until(lambda: tells(client, ext4.point, heard), 120, "the next service watches")
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
        until(lambda: is_damaged(path), 120, "the inode is read again")
        error = told(client, heard)
        assert (error.kind, error.path) == ("filesystem", str(path))
        assert error.attachment == attachment.id
        assert error.file.inode == inode
        assert error.errno in DAMAGED


def children(running: Running) -> list[int]:
    """Those that hear errors, of the service."""
    assert running.process is not None
    pid = running.process.pid
    found = Path(f"/proc/{pid}/task").glob("*/children")
    pids = [int(child) for listed in found for child in listed.read_text().split()]
    return [p for p in pids if name_of(p) == "seal-fserrors"]


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def unknown(client: Client, after: int) -> PiError:
    """The gap, once it is told."""
    while True:
        page = client.call(PiErrors, after=after, wait=60).result
        assert page.errors
        for error in page.errors:
            if error.kind == "unknown":
                return error
        after = page.next


def test_a_gap_is_told_and_ends(ext4: Ground) -> None:
    with ext4.client() as client:
        seal, fd = sealed(client, ext4.file("sealed"))
        heard = now(client)
        until(lambda: tells(client, ext4.point, heard), 120, "the file system is watched")
        [first] = children(ext4.running)
        heard = now(client)
        os.kill(first, signal.SIGKILL)
        error = unknown(client, heard)
        assert (error.at, error.file.inode, error.errno) == ("kernel", 0, 0)
        assert error.file.device == os.stat(ext4.point).st_dev
        assert re.fullmatch(r"errors that nobody heard for \d+\.\d s", error.detail)
        [second] = children(ext4.running)
        assert second != first
        heard = now(client)
        until(lambda: tells(client, ext4.point, heard), 120, "it is watched again")
        give_back(client, seal, fd)
    ext4.running.stop()
    assert not name_of(second)


def test_one_that_may_not_be_able_to_end_keeps_nobody(ext4: Ground) -> None:
    """While somebody waits for a seal on the file system, a process with a fanotify group there may
    be kept from its end, also by SIGKILL (that depends on which mark the waiter holds): another
    takes its place, and the service's end is not kept."""
    path = ext4.file("wanted")
    with ext4.client() as client:
        seal, fd = sealed(client, path, grace=250)
        heard = now(client)
        until(lambda: tells(client, ext4.point, heard), 120, "the file system is watched")
        [first] = children(ext4.running)
        code = "import os, sys; os.truncate(sys.argv[1], 0)"
        with subprocess.Popen([sys.executable, "-c", code, path]) as intruder:
            try:
                next(push for push in client.pushes(120) if isinstance(push, Recall))
                heard = now(client)
                os.kill(first, signal.SIGKILL)
                unknown(client, heard)
                until(
                    lambda: set(children(ext4.running)) - {first}, 120, "a second takes its place"
                )
                heard = now(client)
                until(lambda: tells(client, ext4.point, heard), 120, "the second hears")
                ext4.running.kill()  # waits for its end
                assert intruder.poll() is None
                ext4.running.start()
                ext4.running.ready()
                client.reconnect(120)
                client.call(Reclaim, seal=seal.id)
                heard = now(client)
                until(lambda: tells(client, ext4.point, heard), 120, "the third hears")
                give_back(client, seal, fd)
                assert intruder.wait(120) == 0
            finally:
                intruder.kill()
    until(lambda: not name_of(first), 120, "the first has ended")


def record(kind: int, body: bytes) -> bytes:
    return struct.pack("<BBH", kind, 0, 4 + len(body)) + body


def event(mask: int, *records: bytes) -> bytes:
    body = b"".join(records)
    return struct.pack("<IBBHQii", 24 + len(body), 3, 0, 24, mask, -1, 0) + body


def test_events_of_fanotify_are_read() -> None:
    fsid, nowhere = bytes(range(8)), bytes(8)
    ext = record(1, fsid + struct.pack("<IiII", 8, 1, 12, 34))
    xfs_ = record(1, fsid + struct.pack("<IiQI", 12, 0x81, 1 << 40, 7))
    none = record(1, fsid + struct.pack("<Ii", 0, 0xFF))
    short = record(1, fsid + struct.pack("<Ii", 8, 1))  # no handle behind it
    error = record(5, struct.pack("<iI", errno.EUCLEAN, 3))
    unknown = record(77, b"1234")
    data = b"".join(
        [
            event(0x8000, ext, error),
            event(0x8000, error, unknown, xfs_),
            event(0x2, ext),  # FAN_MODIFY
            event(0x8000, none, error),
            event(0x8000, short, error),
            event(0x8000),
        ]
    )
    found = list(fanotify.parse(data + event(0x8000, ext, error)[:30]))
    assert found == [
        (fsid, KernelError(errno.EUCLEAN, 12, 34, 3)),
        (fsid, KernelError(errno.EUCLEAN, 1 << 40, 7, 3)),
        (fsid, KernelError(errno.EUCLEAN, count=3)),
        (fsid, KernelError(errno.EUCLEAN, count=3)),
        (nowhere, KernelError(0)),
    ]
    assert list(fanotify.parse(event(0x8000, struct.pack("<BBH", 1, 0, 0)))) == [
        (nowhere, KernelError(0))
    ]


def health(domain: int, kind: int, *words: bytes) -> bytes:
    return struct.pack("<IIQ", domain, kind, 1) + b"".join(words).ljust(48, b"\0")


def test_events_of_xfs_are_read() -> None:
    data = b"".join(
        [
            health(0, 0),  # it runs
            health(0, 1, struct.pack("<Q", 7)),  # lost
            health(1, 3, struct.pack("<I", 4)),
            health(2, 4, struct.pack("<II", 8, 3)),
            health(3, 3, struct.pack("<IIQ", 1, 5, 131)),
            health(3, 5, struct.pack("<IIQ", 1, 5, 131)),  # healthy again
            health(0, 6, struct.pack("<I", 5)),
            health(5, 7, struct.pack("<QQ", 2048, 8)),
            health(7, 7, struct.pack("<QQ", 1, 1)),
            health(8, 10, struct.pack("<QQQII", 8192, 4096, 132, 6, errno.EIO)),
            health(99, 99),
            health(0, 2),  # unmounted
        ]
    )
    errors, lost = xfs.parse(data + data[:5])
    clean = errno.EUCLEAN
    assert lost == 7
    assert errors == [
        KernelError(clean, detail="metadata of the file system is sick (mask 0x4)"),
        KernelError(clean, detail="metadata of allocation group 3 is corrupt (mask 0x8)"),
        KernelError(clean, 131, 5, detail="metadata of the inode is sick (mask 0x1)"),
        KernelError(errno.EIO, detail="shut down: metadata I/O error, forced unmount"),
        KernelError(
            errno.EIO,
            length=4096,
            physical=2048 * 512,
            detail="the data device lost sectors 2048 to 2055",
        ),
        KernelError(errno.EIO, length=512, detail="the log device lost sectors 1 to 1"),
        KernelError(errno.EIO, 132, 6, 1, 8192, 4096, detail="direct read"),
    ]


def test_a_service_that_is_killed_ends_its_process_without_a_word() -> None:
    """The service has not read what it was sent: its end is ECONNRESET then, and not an end of
    file."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    start = "import sys; from sealsvc.integrity.kernel.process import main; main(int(sys.argv[1]))"
    child = subprocess.Popen(
        [sys.executable, "-c", start, str(theirs.fileno())],
        pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    with ours, theirs, child:
        fd = os.open(__file__, os.O_RDONLY)
        message = wire.encoded(wire.Watch(os.fstat(fd).st_dev, monitor=False))
        socket.send_fds(ours, [message], [fd])
        os.close(fd)
        assert select.select([ours], [], [], 60)[0], "it has not answered"
        theirs.close()
        ours.close()
        _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (0, b"")
