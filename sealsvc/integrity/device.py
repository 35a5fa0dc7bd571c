"""What the device below a file can check. Everything here blocks."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

import msgspec

from sealsvc.integrity.profiles import Profile
from sealsvc.protocol.integrity import PiDevice

SYS = Path("/sys")

# include/uapi/linux/fs.h, v6.17: struct logical_block_metadata_cap and FS_IOC_GETLBMD_CAP
_CAP = struct.Struct("<IHBBBBBB4x")
_GETLBMD_CAP = 3 << 30 | _CAP.size << 16 | 0x15 << 8 | 2
_INTEGRITY_CAPABLE, _REFTAG = 1 << 0, 1 << 1
_GUARDS = {0: "", 1: "ip", 2: "crc16-t10dif", 4: "crc64-nvme"}


def _by_ioctl(fd: int, name: str) -> PiDevice | None:
    """None where the kernel does not know the call, or the device keeps no metadata."""
    room = bytearray(_CAP.size)
    try:
        fcntl.ioctl(fd, _GETLBMD_CAP, room)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise
    flags, interval, size, _, _, tuple_size, _, guard = _CAP.unpack(room)
    if not flags & _INTEGRITY_CAPABLE:
        return None
    return PiDevice(
        name=name,
        format=f"guard {guard}",
        interval=interval,
        metadata=size,
        tuple=tuple_size,
        guard=_GUARDS.get(guard, f"unknown ({guard})"),
        reftag=bool(flags & _REFTAG),
        profile="",
        source="FS_IOC_GETLBMD_CAP",
    )


def _by_sysfs(device: int, sys: Path) -> PiDevice | None:
    """/sys/block/*/integrity: `format` is "none" or a name such as T10-DIF-TYPE1-CRC."""
    where = (sys / "dev/block" / f"{os.major(device)}:{os.minor(device)}").resolve()
    if (where / "partition").exists():
        where = where.parent
    try:
        kept = (where / "integrity/format").read_text().strip()
        interval = int((where / "integrity/protection_interval_bytes").read_text())
    except (OSError, ValueError):
        return None
    if kept in ("none", "nop", ""):
        return None
    guard = "ip" if kept.endswith("-IP") else "crc64-nvme" if "CRC64" in kept else "crc16-t10dif"
    size = 16 if guard == "crc64-nvme" else 8
    return PiDevice(
        name=where.name,
        format=kept,
        interval=interval,
        metadata=size,
        tuple=size,
        guard=guard,
        reftag="TYPE3" not in kept,
        profile="",
        source="sysfs",
    )


def _fitting(device: PiDevice, profiles: Mapping[str, Profile]) -> str:
    """The built-in profile whose tuple the device has."""
    for name, profile in profiles.items():
        kind = "blocknum" if device.reftag else "constant"
        if (
            name.startswith(("t10-", "nvme64-sts0"))
            and (profile.granularity, profile.checksum) == (device.interval, device.guard)
            and profile.reftag == kind
        ):
            return name
    return ""


def look(
    fd: int, profiles: Mapping[str, Profile], sys: Path = SYS
) -> tuple[PiDevice | None, list[str]]:
    """The device of a descriptor (a file's, or a block device's own), and what is not known."""
    status = os.fstat(fd)
    is_device = stat.S_ISBLK(status.st_mode)
    number = status.st_rdev if is_device else status.st_dev
    notes = list[str]()
    found = None
    try:
        found = _on_device(fd if is_device else -1, number)
    except OSError as error:
        notes.append(f"the device {os.major(number)}:{os.minor(number)}: {error.strerror}")
    found = found or _by_sysfs(number, sys)
    if found is None:
        if not os.major(number):
            notes.append("the file system has no block device of its own")
        return None, notes
    profile = _fitting(found, profiles)
    if not profile:
        notes.append(f"no built-in profile has the layout of {found.format}")
    return msgspec.structs.replace(found, profile=profile), notes


def _on_device(fd: int, number: int) -> PiDevice | None:
    name = f"{os.major(number)}:{os.minor(number)}"
    if fd >= 0:
        return _by_ioctl(fd, name)
    try:
        node = os.open(f"/dev/block/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        return _by_ioctl(node, name)
    finally:
        os.close(node)
