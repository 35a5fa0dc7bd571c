"""Real file systems to test on: sparse images on loop devices."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

MiB = 1 << 20
EXCHRANGE = 1 << 6  # XFS_SB_FEAT_INCOMPAT_EXCHRANGE (xfs_format.h, v6.10)

# Of this process: other runs on the machine are not our concern.
PREFIX = f"sealsvc-test-{os.getpid()}-"

_UNMOUNT_TRIES = 300  # a tenth of a second apart


def leftovers() -> list[str]:
    """Mounts below, and loop devices on, what this process made."""
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [line.split()[4] for line in table]
    backing = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return sorted(path for path in (*mounts, *backing) if PREFIX in path)


@contextmanager
def mounted(
    fstype: str,
    size: int = 512 * MiB,
    mkfs_args: Sequence[str] = (),
    mount_args: Sequence[str] = (),
    exchange: bool = True,
) -> Iterator[Path]:
    """A new file system of `size` bytes (XFS wants 300 MiB), mounted while the context lasts; XFS
    with exchange of ranges if `exchange`."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{fstype}-") as directory:
        image, point = Path(directory, "image"), Path(directory, "mount")
        point.mkdir()
        with image.open("xb") as file:
            file.truncate(size)
        _run(f"mkfs.{fstype}", "-q", *mkfs_args, str(image))
        if fstype == "xfs" and exchange:
            allow_exchange(str(image))
        # The loop device is made with LO_FLAGS_AUTOCLEAR: it goes with the last unmount.
        _run("mount", "-t", fstype, "-o", "loop", *mount_args, str(image), str(point))
        try:
            yield point
        finally:
            _unmount(point)


def allow_exchange(image: str) -> None:
    """On an XFS, where the kernel has XFS_IOC_EXCHANGE_RANGE: mkfs.xfs 6.1 does not know it, and
    the kernel wants the bit."""
    if _kernel() < (6, 10):
        return
    found = _run("xfs_db", "-r", "-c", "sb 0", "-c", "print features_incompat", image)
    bits = int(found.split("=")[1], 16) | EXCHRANGE
    _run("xfs_db", "-x", "-c", "sb 0", "-c", f"write -d features_incompat {bits:#x}", image)


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _unmount(point: Path) -> None:
    """A process that is being reaped may keep a file open a little longer. Whoever stays longer
    than that is an error, but not one that leaves a mount behind."""
    for _ in range(_UNMOUNT_TRIES):
        done = subprocess.run(["umount", point], capture_output=True, text=True, check=False)
        if not done.returncode:
            return
        time.sleep(0.1)
    users = _users(point)
    _run("umount", "--lazy", str(point))
    raise RuntimeError(
        f"{done.stderr.strip()}; unmounted lazily; in use by {users or 'nobody seen'}"
    )


def _users(point: Path) -> str:
    device = point.stat().st_dev
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.stat().st_dev == device:
                found[
                    f"{link.parts[2]} ({link.parents[1].joinpath('comm').read_text().strip()})"
                ] = 0
        except OSError:
            continue
    return ", ".join(found)
