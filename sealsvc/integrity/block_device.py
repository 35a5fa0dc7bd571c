"""The block device under a file: which one it is, and whether protection information (PI) can be
handed to it past the file system.

The device is told by the file's st_dev and by nothing else. A name in /dev only leads to a node,
which counts when its st_rdev is that number.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _sealsvc_pi_device import ffi, lib

from sealsvc.core.errors import Refusal
from sealsvc.linux.host import pmem

GUARDS = {
    int(lib.SEAL_PI_GUARD_IP): "ip",
    int(lib.SEAL_PI_GUARD_CRC16): "crc16-t10dif",
    int(lib.SEAL_PI_GUARD_CRC64): "crc64-nvme",
}


@dataclass(frozen=True, slots=True)
class Capability:
    """What the device keeps with each `interval` of data: a tuple of `metadata` bytes, in which
    guard, application tag and reference tag lie from `pi_offset` on. Sizes in bytes. `checked`: the
    device itself compares them. `ref_size` is 0 where the reference tag means nothing (type 3)."""

    checked: bool
    interval: int
    metadata: int
    pi_offset: int
    pi_size: int
    guard: str
    app_size: int
    ref_size: int
    block: int

    @property
    def profile(self) -> str:
        """The name of its tuples among the built-in profiles. Linux treats type 2 as type 1."""
        if self.guard == "crc64-nvme":
            return f"nvme64-sts0-{self.interval}"
        guard = "-ip" if self.guard == "ip" else ""
        return f"t10-dif{1 if self.ref_size else 3}-{self.interval}{guard}"


def name_of(device: int) -> str:
    """The kernel's name, such as sda1; its number where sysfs does not know it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        return Path(f"/sys/dev/block/{number}").resolve(strict=True).name
    except OSError:
        return number


def unsuitable(device: int) -> str:
    """Why blocks of the device cannot be addressed by a file's extents; empty when they can. Disks
    and partitions can, and device-mapper devices whose targets all are linear: then the kernel
    itself carries PI, and maps reference tags, to the disk below."""
    where = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    name = name_of(device)
    try:
        if not where.exists():
            return f"{name} is no block device: the file system has no device of its own"
        disk = where.resolve()
        if (where / "partition").exists():
            disk = disk.parent
        if (disk / "loop").exists():
            return f"{name} is a loop device: its blocks are those of another file"
        if (disk / "dm").exists():
            return _unsuitable_table(device, name)
        if any((disk / "slaves").iterdir()):
            below = ", ".join(sorted(path.name for path in (disk / "slaves").iterdir()))
            return f"{name} is made of other devices ({below}), and is not device-mapper's linear"
    except OSError as error:
        return f"{name} cannot be looked at: {error}"
    return ""


def _unsuitable_table(device: int, name: str) -> str:
    try:
        targets = pmem.dm_targets(device)
    except OSError as error:
        return f"device-mapper does not tell the table of {name}: {error}"
    for target in targets:
        if target.kind != "linear":
            return f"{name} is device-mapper {target.kind}, not linear"
        if why := unsuitable(target.below()):
            return f"{name} stands on a device that cannot be used: {why}"
    return ""


def opened(device: int, *, writable: bool) -> int:
    """A descriptor of the block device with O_DIRECT. Raises Refusal."""
    node = Path("/dev") / _node_name(device)
    flags = os.O_RDWR if writable else os.O_RDONLY
    try:
        fd = os.open(node, flags | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = error.strerror
        if error.errno == errno.EBUSY:
            why = "the kernel keeps mounted devices from being written (bdev_allow_write_mounted)"
        raise unavailable(f"{node} cannot be opened: {why}") from None
    found = os.fstat(fd)
    if not stat.S_ISBLK(found.st_mode) or found.st_rdev != device:
        os.close(fd)
        raise unavailable(f"{node} is not device {os.major(device)}:{os.minor(device)}")
    return fd


def _node_name(device: int) -> str:
    uevent = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/uevent")
    for line in uevent.read_text().splitlines():
        if line.startswith("DEVNAME="):
            return line.removeprefix("DEVNAME=")
    return name_of(device)


def capability(fd: int) -> Capability:
    """Of an open block device. Raises Refusal with the reason why it takes no PI."""
    out = ffi.new("struct seal_pi_capability *")
    result = lib.seal_pi_capability(fd, out)
    name = name_of(os.fstat(fd).st_rdev)
    if result in (-errno.ENOTTY, -errno.EINVAL, -errno.EOPNOTSUPP):
        raise unavailable(
            "the kernel does not tell what the device keeps (FS_IOC_GETLBMD_CAP: Linux 6.17 with"
            " CONFIG_BLK_DEV_INTEGRITY)"
        )
    if result < 0:
        raise OSError(-result, os.strerror(-result), f"FS_IOC_GETLBMD_CAP of {name}")
    if not out.metadata:
        raise unavailable(f"{name} keeps no protection information with its blocks")
    found = Capability(
        checked=bool(out.checked),
        interval=out.interval,
        metadata=out.metadata,
        pi_offset=out.pi_offset,
        pi_size=out.pi_size,
        guard=GUARDS.get(out.guard, "none"),
        app_size=out.app_size,
        ref_size=out.ref_size,
        block=out.block,
    )
    if lib.seal_pi_supported(out) < 0:
        raise unavailable(
            f"{name} keeps {found.metadata} bytes of metadata with each {found.interval}, guard"
            f" {found.guard}: no tuple that the device path can make"
        )
    return found


@contextmanager
def device_under(file: int, *, writable: bool) -> Iterator[tuple[int, Capability]]:
    """The open block device under an open file, and what it can do. Raises Refusal
    (device-path-unavailable) with the reason where PI cannot be handed to it."""
    device = os.fstat(file).st_dev
    if why := unsuitable(device):
        raise unavailable(why)
    fd = opened(device, writable=writable)
    try:
        yield fd, capability(fd)
    finally:
        os.close(fd)


def unavailable(why: str) -> Refusal:
    return Refusal("device-path-unavailable", why)
