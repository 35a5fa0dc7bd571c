"""Loop devices, and the files they are backed by: a loop device writes and discards below every
hook.

The name of the backing file in sysfs is that of some view at some time. LOOP_GET_STATUS64 tells its
device and inode. But that asks the backing file's file system for attributes (drivers/block/loop.c
loop_get_status), which may be dead; so each device is asked once for each file it is given (its
diskseq changes then), in a thread that may be lost.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sealsvc.core.errors import Refusal
from sealsvc.linux import native

_GET_STATUS64 = 0x4C05
_STATUS64 = struct.Struct("=QQ216x")  # struct loop_info64: lo_device, lo_inode first
_PATIENCE = 1.0  # seconds
_MOST_STUCK = 256
# In the stack of a thread that asks the backing file's file system; XFS and ext4 answer that from
# memory, and never block there.
_ASKS_FILESYSTEM = "vfs_getattr"


@dataclass(slots=True, eq=False)
class _Asked:
    """One device with one backing file. `file` is (device, inode), None: not known (yet)."""

    began: float = field(default_factory=time.monotonic)
    thread_id: int = 0
    file: tuple[int, int] | None = None
    failed: str = ""
    error: int = 0
    done: threading.Event = field(default_factory=threading.Event)


class LoopDevices:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, bytes], _Asked] = {}

    def refuse_if_backing(self, fd: int, path: str) -> None:
        """Raises backs-loop-device; try-later where it cannot be known whether a loop device is
        backed by the open file."""
        st = os.fstat(fd)
        for name, asked in self._all():
            # Waited for once: what does not answer delays no later grant.
            asked.done.wait(max(0.0, asked.began + _PATIENCE - time.monotonic()))
            if asked.file == (st.st_dev, st.st_ino):
                raise Refusal(
                    "backs-loop-device",
                    f"{path} backs /dev/{name}; detach it first (losetup -d /dev/{name})",
                    {"path": path, "loop": f"/dev/{name}"},
                )
            if asked.file is None and not _cannot_be(asked, fd):
                raise Refusal(
                    "try-later",
                    f"/dev/{name} does not tell which file it is backed by"
                    f" ({asked.failed or 'it does not answer'}), and it may be {path}: detach it"
                    f" (losetup -d /dev/{name}), or close the file everywhere else",
                    {"path": path, "loop": f"/dev/{name}"},
                    retry_after=1.0,
                )

    def _all(self) -> list[tuple[str, _Asked]]:
        """Those that are backed by something."""
        now: dict[tuple[str, bytes], _Asked] = {}
        with self._lock:
            for name in os.listdir("/sys/block"):
                if name.startswith("loop") and (key := _attached(name)):
                    now[key] = self._asked.get(key) or self._ask(name)
            self._asked = now
        return [(name, asked) for (name, _), asked in now.items()]

    def _ask(self, name: str) -> _Asked:
        asked = _Asked()
        stuck = sum(not other.done.is_set() for other in self._asked.values())
        if stuck >= _MOST_STUCK:
            asked.failed = "too many others do not answer"
            asked.done.set()
        else:
            threading.Thread(target=_ask, args=(name, asked), daemon=True).start()
        return asked


def _attached(name: str) -> tuple[str, bytes] | None:
    """What tells one attachment of the device from the next; None when nothing is attached."""
    try:
        if not os.path.exists(f"/sys/block/{name}/loop/backing_file"):
            return None
        # Every grant reads this of every device: in three system calls.
        fd = os.open(f"/sys/block/{name}/diskseq", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return name, os.read(fd, 32)
        finally:
            os.close(fd)
    except OSError:
        return None


def _ask(name: str, asked: _Asked) -> None:
    asked.thread_id = threading.get_native_id()
    try:
        fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            told = bytearray(_STATUS64.size)
            fcntl.ioctl(fd, _GET_STATUS64, told)
        finally:
            os.close(fd)
        device, inode = _STATUS64.unpack(told)
        asked.file = _device_of(device), inode
    except OSError as error:
        if error.errno == errno.ENXIO:  # it was detached meanwhile
            asked.file = (0, 0)
        asked.failed, asked.error = error.strerror or str(error), error.errno or 0
    finally:
        asked.done.set()


def _device_of(encoded: int) -> int:
    """huge_encode_dev (linux/kdev_t.h) as stat(2) has it: glibc packs the numbers otherwise."""
    major, minor = encoded >> 8 & 0xFFF, encoded & 0xFF | encoded >> 12 & 0xFFF00
    return os.makedev(major, minor)


def _cannot_be(asked: _Asked, fd: int) -> bool:
    """Is it known all the same that the open file does not back the device? It does not when its
    own file system is not the one that does not answer, or nobody else has it open."""
    # The backing file's attributes cannot be had since its file system was shut down
    # (fs/xfs/xfs_iops.c xfs_vn_getattr); those of the open file could.
    if asked.error == errno.EIO and _has_attributes(fd):
        return True
    if not asked.done.is_set():
        with suppress(OSError):
            stack = Path(f"/proc/self/task/{asked.thread_id}/stack").read_text()
            if _ASKS_FILESYSTEM in stack:
                return True
    return native.lease_probe(fd, fcntl.F_WRLCK)


def _has_attributes(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
