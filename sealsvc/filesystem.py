"""What lies under a file: its file system, and what makes a seal there impossible to keep."""

from __future__ import annotations

import os
import re
import select
import threading
from dataclasses import dataclass
from pathlib import Path

from sealsvc.errors import Refusal


@dataclass(frozen=True, slots=True)
class Filesystem:
    """`block_size` in bytes; `reflink` is true where files may share blocks."""

    mount: str
    type: str
    source: str
    options: str
    device: int
    block_size: int = 4096
    reflink: bool = False

    @property
    def dax(self) -> bool:
        return bool(re.search(r"\bdax(=always)?(,|$)", self.options))

    @property
    def read_only(self) -> bool:
        """Of the file system as a whole: the options of the mount itself come last."""
        return self.options.split(",")[0] == "ro"

    @property
    def unsupported(self) -> str:
        """Why no seal can be kept here; empty when one can."""
        if self.type in SUPPORTED:
            return ""
        return UNSUPPORTED.get(
            self.type, f"{self.type} has not been measured: no coverage is known for it"
        )


SUPPORTED = frozenset({"xfs", "ext4"})

UNSUPPORTED = {
    "btrfs": "btrfs is copy-on-write: overwriting data moves its blocks, and balance and snapshots"
    " move or share extents without any event",
    "tmpfs": "tmpfs has no block map: its pages live in memory and move under reclaim",
    "ramfs": "ramfs has no block map",
    "overlay": "overlay files change their inode at copy-up; seal the file in the upper or lower"
    " file system itself",
    "nfs": "an NFS server changes the extent map out of this machine's sight",
    "nfs4": "an NFS server changes the extent map out of this machine's sight",
    "cifs": "an SMB server changes the extent map out of this machine's sight",
    "fuse": "a FUSE server changes the extent map out of the kernel's sight",
    "fuseblk": "a FUSE server changes the extent map out of the kernel's sight",
    "ext2": "ext2 has not been measured: convert it to ext4",
    "ext3": "ext3 has not been measured: convert it to ext4",
    "squashfs": "squashfs is compressed: its extents have no place that can be addressed",
    "erofs": "erofs may be compressed: its extents have no place that can be addressed",
    "f2fs": "f2fs is log-structured: overwriting data moves its blocks",
}


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo (proc_pid_mountinfo(5))."""

    id: int
    device: int
    root: str
    point: str
    type: str
    source: str
    options: str


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def parse_mountinfo(text: str) -> list[Mount]:
    mounts = []
    for line in text.splitlines():
        fields = line.split(" ")
        dash = fields.index("-", 6)
        major, minor = fields[2].split(":")
        mounts.append(
            Mount(
                int(fields[0]),
                os.makedev(int(major), int(minor)),
                _unescape(fields[3]),
                _unescape(fields[4]),
                fields[dash + 1].split(".")[0],
                _unescape(fields[dash + 2]),
                fields[dash + 3] + "," + fields[5],
            )
        )
    return mounts


class _MountTable:
    """The mounts of this namespace, read again only when the kernel says that they changed
    (proc_pid_mountinfo(5): an exceptional condition on the descriptor, which poll clears)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._poll: select.poll | None = None
        self._mounts: list[Mount] = []

    def read(self) -> list[Mount]:
        with self._lock:
            if self._poll is None:
                self._poll = select.poll()
                fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
                self._poll.register(fd, select.POLLPRI)
                changed = True
            else:
                changed = bool(self._poll.poll(0))
            if changed:  # a change from here on is told by the next poll
                self._mounts = parse_mountinfo(Path("/proc/self/mountinfo").read_text())
            return self._mounts


_table = _MountTable()


def mounts() -> list[Mount]:
    return _table.read()


def _short(path: str) -> bytes:
    """A file of /proc or /sys, in three system calls: every grant reads some."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 8192)
    finally:
        os.close(fd)


def mount_of(fd: int) -> Mount:
    """The mount that `fd` was opened on, by the mount id of its fdinfo."""
    found = re.search(rb"^mnt_id:\s*(\d+)", _short(f"/proc/self/fdinfo/{fd}"), re.M)
    wanted = int(found[1]) if found else -1
    for mount in mounts():
        if mount.id == wanted:
            return mount
    raise Refusal(
        "filesystem-unsupported",
        "the file's mount is not in this mount namespace, so its file system cannot be told",
    )


def device_of(fd: int) -> int:
    """The device of an open file, told from the mount table alone: asking the file system itself
    may block. -1 when the mount is not in this namespace."""
    try:
        return mount_of(fd).device
    except Refusal:
        return -1


def device_at(path: str) -> int:
    """The device that an absolute path without symbolic links leads to, told likewise."""
    normal = os.path.normpath(path)
    above = [m for m in mounts() if m.point == "/" or f"{normal}/".startswith(f"{m.point}/")]
    # Of those on the same directory, the last hides the others.
    return max(reversed(above), key=lambda mount: len(mount.point)).device if above else -1


def refuse_if_loop_backed(device: int, inode: int, path: str) -> None:
    """A loop device writes and discards below every hook: nothing would hold it."""
    for name in os.listdir("/sys/block"):
        if not name.startswith("loop"):
            continue
        try:  # one that backs nothing has no such file
            st = os.stat(_short(f"/sys/block/{name}/loop/backing_file").rstrip(b"\n"))
        except OSError:
            continue
        if (st.st_dev, st.st_ino) == (device, inode):
            raise Refusal(
                "backs-loop-device",
                f"{path} backs /dev/{name}; detach it first (losetup -d /dev/{name})",
                {"path": path, "loop": f"/dev/{name}"},
            )


def refuse_if_overlay_upper(path: str, table: list[Mount] | None = None) -> None:
    """truncate(2) through an overlay reaches its upper file past fanotify and past leases."""
    real = os.path.realpath(path)
    for mount in table if table is not None else mounts():
        if mount.type != "overlay":
            continue
        for option in mount.options.split(","):
            name, _, value = option.partition("=")
            directory = os.path.realpath(_unescape(value)) if name == "upperdir" else ""
            if directory and os.path.commonpath([real, directory]) == directory:
                raise Refusal(
                    "overlay-upper",
                    f"{path} lies in the upper directory of the overlay on {mount.point}",
                    {"path": path, "overlay": mount.point},
                )
