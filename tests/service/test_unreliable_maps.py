"""Files whose blocks do not hold their bytes, whatever FIEMAP says: refused with the reason."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from tests.support.refusals import refusal
from tests.support.scratch import MiB, mounted
from tests.support.service import RISKS, serving

pytestmark = pytest.mark.kernel

ADD_KEY, SET_POLICY = 0xC0506617, 0x800C6613  # FS_IOC_ADD_ENCRYPTION_KEY, ..._SET_ENCRYPTION_POLICY
ENABLE_VERITY = 0x40806685


@contextmanager
def served(
    tmp_path: Path, *mkfs: str, options: tuple[str, ...] = ()
) -> Iterator[tuple[Path, Client]]:
    with (
        mounted("ext4", 128 * MiB, mkfs, options) as point,
        serving(tmp_path, [point], RISKS) as socket,
        Client(socket) as client,
    ):
        yield point, client


def make(path: Path, content: bytes = bytes(65536)) -> Path:
    path.write_bytes(content)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def reason(client: Client, path: Path, **terms: object) -> str:
    refused = refusal(lambda: client.grant(path=str(path), **terms))
    assert refused.code == "extent-unsuitable"
    assert str(path) in refused.message
    return str(refused.details["flag"])


def is_granted(client: Client, path: Path, **terms: object) -> None:
    reply = client.grant(path=str(path), **terms)
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)


def test_an_encrypted_file(tmp_path: Path) -> None:
    with served(tmp_path, "-O", "encrypt") as (point, client):
        directory = point / "encrypted"
        directory.mkdir()
        key = bytearray(struct.pack("=II32sII8I64s", 2, 0, b"", 64, 0, *[0] * 8, os.urandom(64)))
        top = os.open(point, os.O_RDONLY)
        inside = os.open(directory, os.O_RDONLY)
        try:
            ioctl(top, ADD_KEY, key)
            # Version 2, AES-256-XTS for contents, AES-256-CTS for names.
            ioctl(
                inside, SET_POLICY, struct.pack("=BBBBB3s16s", 2, 1, 4, 3, 0, b"", bytes(key[8:24]))
            )
        except OSError as error:
            pytest.skip(f"no fscrypt here: {error}")
        finally:
            os.close(top)
            os.close(inside)
        file = make(directory / "file")
        assert reason(client, file) == "encrypted"
        assert reason(client, file, kind="shared", iomode="read") == "encrypted"
        is_granted(client, make(point / "plain"))


def test_a_file_with_verity(tmp_path: Path) -> None:
    with served(tmp_path, "-O", "verity") as (point, client):
        file = make(point / "file")
        fd = os.open(file, os.O_RDONLY)
        try:
            ioctl(fd, ENABLE_VERITY, struct.pack("=IIIIQIIQ88x", 1, 1, 4096, 0, 0, 0, 0, 0))
        except OSError as error:
            pytest.skip(f"no fs-verity here: {error}")
        finally:
            os.close(fd)
        assert reason(client, file, iomode="read") == "verity"


def test_journalled_data_by_a_mount_option(tmp_path: Path) -> None:
    with served(tmp_path, options=("-o", "data=journal")) as (point, client):
        assert reason(client, make(point / "file")) == "journalled"


def test_journalled_data_by_a_default_in_the_superblock(tmp_path: Path) -> None:
    """tune2fs -o journal_data: no mount option names it."""
    with mounted("ext4", 128 * MiB) as point:
        image = point.parent / "image"
        subprocess.run(["umount", point], check=True)
        subprocess.run(["tune2fs", "-o", "journal_data", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        with serving(tmp_path, [point], RISKS) as socket, Client(socket) as client:
            assert reason(client, make(point / "file")) == "journalled"


def test_journalled_data_of_one_file(tmp_path: Path) -> None:
    """As chattr +j has it, for which root may lack CAP_SYS_RESOURCE."""
    with mounted("ext4", 128 * MiB) as point:
        file, other = make(point / "file"), make(point / "other")
        image = point.parent / "image"
        subprocess.run(["umount", point], check=True)
        change = "set_inode_field /file flags 0x84000"  # with FS_EXTENT_FL
        subprocess.run(["debugfs", "-w", "-R", change, image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        with serving(tmp_path, [point], RISKS) as socket, Client(socket) as client:
            assert reason(client, file, kind="shared") == "journalled"
            is_granted(client, other)


def test_data_in_the_inode(tmp_path: Path) -> None:
    with served(tmp_path, "-O", "inline_data") as (point, client):
        assert reason(client, make(point / "file", b"little")) == "inline"


@pytest.mark.parametrize("iomode", ["rw", "read"])
def test_a_swap_file_in_use(client: Client, file: Path, iomode: str) -> None:
    file.write_bytes(bytes(4 * MiB))
    file.chmod(0o600)
    subprocess.run(["mkswap", "-q", file], check=True)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    if subprocess.run(["swapon", file], check=False, capture_output=True).returncode:
        pytest.skip("no swap here")
    try:
        assert reason(client, file, iomode=iomode) == "swap"
    finally:
        subprocess.run(["swapoff", file], check=True)
    is_granted(client, file, iomode=iomode)


def test_a_file_on_the_realtime_device(tmp_path: Path) -> None:
    with mounted("xfs") as point:
        image, realtime = point.parent / "image", point.parent / "realtime"
        subprocess.run(["umount", point], check=True)
        with realtime.open("wb") as sparse:
            sparse.truncate(64 * MiB)
        device = subprocess.run(
            ["losetup", "--find", "--show", realtime], check=True, capture_output=True, text=True
        ).stdout.strip()
        try:
            made = ["mkfs.xfs", "-f", "-q", "-m", "rmapbt=0,reflink=0", "-r", f"rtdev={device}"]
            subprocess.run([*made, image], check=True)
            options = f"loop,rtdev={device}"
            if subprocess.run(["mount", "-o", options, image, point], check=False).returncode:
                subprocess.run(["mount", "-o", "loop", image, point], check=False)
                pytest.skip("no realtime devices here")
            file = point / "file"
            file.touch()
            subprocess.run(["xfs_io", "-c", "chattr +r", file], check=True)
            make(file)
            with serving(tmp_path, [point], RISKS) as socket, Client(socket) as client:
                assert reason(client, file) == "realtime"
                is_granted(client, make(point / "other"))
        finally:
            subprocess.run(["umount", point], check=False)
            subprocess.run(["losetup", "-d", device], check=True)
            subprocess.run(["mkfs.xfs", "-f", "-q", image], check=True)
            subprocess.run(["mount", "-o", "loop", image, point], check=True)


@pytest.mark.parametrize("attribute", ["i", "a"])
def test_a_protected_file_is_refused_with_the_cause(
    client: Client, file: Path, attribute: str
) -> None:
    if subprocess.run(["chattr", f"+{attribute}", file], check=False).returncode:
        pytest.skip("no CAP_LINUX_IMMUTABLE here")
    try:
        refused = refusal(lambda: client.grant(path=str(file)))
    finally:
        subprocess.run(["chattr", f"-{attribute}", file], check=True)
    assert refused.details["errno"] == errno.EPERM
    assert "immutable or append-only (lsattr)" in refused.message
    is_granted(client, file)


def test_a_memfd_is_refused_for_its_file_system(client: Client) -> None:
    fd = os.memfd_create("memory")
    try:
        os.write(fd, bytes(65536))
        refused = refusal(lambda: client.grant([fd]))
    finally:
        os.close(fd)
    assert refused.code == "filesystem-unsupported"
    assert "tmpfs" in refused.message
