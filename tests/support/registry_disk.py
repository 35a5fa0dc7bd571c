"""A disk for the registry, and what may befall it. Each fault returns what ends it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sealsvc.client import Client
from sealsvc.protocol.seals import Return

Mend = Callable[[], object]

MiB = 1 << 20
RATE = 100.0  # grants in a second


class Disk:
    """An ext4 at `point`, read-only after an error. SQLite's -shm has holes in its 1 KiB blocks."""

    def __init__(self, directory: Path) -> None:
        self.point, self._directory = directory / "disk", directory
        self.registry = self.point / "registry"
        self._made = 0
        self.point.mkdir()
        self._mount()

    def _mount(self) -> None:
        self._made += 1
        image = self._directory / f"disk{self._made}.img"
        with image.open("wb") as file:
            file.truncate(16 * MiB)
        subprocess.run(["mkfs.ext4", "-q", "-b", "1024", image], check=True)
        subprocess.run(["mount", "-o", "loop,errors=remount-ro", image, self.point], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.point], check=True)

    def replace(self) -> None:
        """By an empty one, as an administrator replaces a disk that is broken."""
        self.unmount()
        self._mount()


@contextmanager
def scratch_disk(directory: Path) -> Iterator[Disk]:
    disk = Disk(directory)
    try:
        yield disk
    finally:
        disk.unmount()


def full(disk: Disk) -> Mend:
    ballast = disk.point / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return ballast.unlink


def read_only(disk: Disk) -> Mend:
    mounts = Path("/proc/mounts").read_text().splitlines()
    (device,) = (line.split()[0] for line in mounts if f" {disk.point} " in line)
    Path(f"/sys/fs/ext4/{Path(device).name}/trigger_fs_error").write_text("a test")
    return disk.replace


def hanging(disk: Disk) -> Mend:
    subprocess.run(["fsfreeze", "--freeze", disk.point], check=True)
    return lambda: subprocess.run(["fsfreeze", "--unfreeze", disk.point], check=True)


def failing(disk: Disk) -> Mend:
    """EXT4_IOC_SHUTDOWN: each access is EIO from now on."""
    code = (
        "import fcntl, os, sys; fcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587D, b'\\2\\0\\0\\0')"
    )
    subprocess.run([sys.executable, "-c", code, disk.point], check=True)
    return disk.replace


def damaged(disk: Disk) -> Mend:
    path = disk.registry / "registry.db"
    with path.open("r+b") as file:
        for at in range(8192, path.stat().st_size, 4096):
            file.seek(at)
            file.write(b"\xa5" * 200)
    return lambda: None


def removed(disk: Disk) -> Mend:
    subprocess.run(["rm", "-r", disk.registry], check=True)
    return lambda: None


FAULTS = (full, read_only, hanging, failing, damaged, removed)


def grants(client: Client, file: Path, seconds: float) -> list[float]:
    """Seconds that each grant and its return took, RATE of them in a second."""
    took = []
    due = time.perf_counter()
    for _ in range(int(RATE * seconds)):
        due += 1 / RATE
        time.sleep(max(0.0, due - time.perf_counter()))
        before = time.perf_counter()
        granted = client.grant(path=str(file), kind="shared")
        os.close(granted.fds[0])
        client.call(Return, seal=granted.seal.id)
        took.append(time.perf_counter() - before)
    return took
