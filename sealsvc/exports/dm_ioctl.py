"""Device-mapper by its ioctls (include/uapi/linux/dm-ioctl.h).

Not dmsetup(8): a recall suspends the device, and what suspends it must not have to read a program
from a disk that may lie on it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

SECTOR = 512
CONTROL = "/dev/mapper/control"

_HEAD = struct.Struct("=3IIIIiIII Q 128s 129s 7x")
_SPEC = struct.Struct("=QQiI16s")
_CREATE, _REMOVE, _SUSPEND, _STATUS, _LOAD, _TABLE = 3, 4, 6, 7, 9, 12
_READ_ONLY, _SUSPENDED, _STATUS_TABLE, _FULL = 1 << 0, 1 << 1, 1 << 4, 1 << 8
_SKIP_LOCKFS, _NO_FLUSH, _DEFERRED = 1 << 10, 1 << 11, 1 << 17
_ROOM = 1 << 16


@dataclass(frozen=True, slots=True)
class Target:
    """A line of a table: sectors of 512 bytes."""

    start: int
    length: int
    type: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Device:
    number: int
    open_count: int
    suspended: bool

    @property
    def node(self) -> str:
        return f"/dev/dm-{os.minor(self.number)}"


def _split(data: bytes, count: int) -> list[Target]:
    targets, at = list[Target](), 0
    for _ in range(count):
        start, length, _status, following, kind = _SPEC.unpack_from(data, at)
        text = data[at + _SPEC.size : data.index(b"\0", at + _SPEC.size)]
        targets.append(Target(start, length, kind.split(b"\0")[0].decode(), text.decode()))
        at = following
    return targets


def _joined(targets: Sequence[Target]) -> bytes:
    parts = []
    for target in targets:
        text = target.parameters.encode() + b"\0"
        size = (_SPEC.size + len(text) + 7) & ~7
        head = _SPEC.pack(target.start, target.length, 0, size, target.type.encode())
        parts.append((head + text).ljust(size, b"\0"))
    return b"".join(parts)


class DeviceMapper:
    """An open /dev/mapper/control. Devices are named, as dmsetup names them, or found by number.
    Raises OSError as the kernel does, with the device's name."""

    def __init__(self) -> None:
        self._fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def _ask(
        self,
        command: int,
        name: str = "",
        *,
        flags: int = 0,
        number: int = 0,
        uuid: str = "",
        targets: Sequence[Target] = (),
        room: int = 0,
    ) -> tuple[Device, int, int, bytes]:
        """The device, its flags, how many targets, and what came behind the header."""
        data = _joined(targets)
        size = _HEAD.size + max(len(data), room)
        buffer = bytearray(size)
        _HEAD.pack_into(
            buffer, 0, 4, 0, 0, size, _HEAD.size, len(targets), 0, flags, 0, 0,
            _huge(number), name.encode(), uuid.encode(),
        )  # fmt: skip
        buffer[_HEAD.size : _HEAD.size + len(data)] = data
        try:
            fcntl.ioctl(self._fd, 3 << 30 | _HEAD.size << 16 | 0xFD << 8 | command, buffer)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), name or None) from None
        head = _HEAD.unpack_from(buffer)
        begin, count, opened, flags, device = head[4], head[5], head[6], head[7], head[10]
        found = Device(_small(device), opened, bool(flags & _SUSPENDED))
        return found, flags, count, bytes(buffer[begin:])

    def find(self, name: str) -> Device | None:
        try:
            return self._ask(_STATUS, name)[0]
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def table(self, number: int) -> list[Target]:
        """The table in use of the device with this number."""
        return self._table("", number)

    def table_of(self, name: str) -> list[Target]:
        return self._table(name, 0)

    def _table(self, name: str, number: int) -> list[Target]:
        room = _ROOM
        while True:
            _, flags, count, data = self._ask(
                _TABLE, name, number=number, flags=_STATUS_TABLE, room=room
            )
            if not flags & _FULL:
                return _split(data, count)
            room *= 4

    def create(self, name: str, uuid: str) -> Device:
        return self._ask(_CREATE, name, uuid=uuid)[0]

    def load(self, name: str, targets: Sequence[Target], *, read_only: bool = False) -> None:
        """Into the inactive slot: in use from the next resume on."""
        self._ask(_LOAD, name, flags=_READ_ONLY if read_only else 0, targets=targets)

    def suspend(self, name: str, *, flush: bool = True) -> None:
        """New I/O waits; when this returns, what was under way has ended. With `flush` a file
        system on the device is frozen first, so that its writes go by the table in use."""
        self._ask(_SUSPEND, name, flags=_SUSPENDED | (0 if flush else _SKIP_LOCKFS | _NO_FLUSH))

    def resume(self, name: str) -> None:
        self._ask(_SUSPEND, name)

    def remove(self, name: str, *, deferred: bool = False) -> None:
        """`deferred`: when it is in use, as soon as it is not. None to remove is no error."""
        with suppress(FileNotFoundError):
            try:
                self._ask(_REMOVE, name, flags=_DEFERRED if deferred else 0)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise


# Device numbers cross this interface as huge_encode_dev() (include/linux/kdev_t.h).
def _huge(number: int) -> int:
    major, minor = os.major(number), os.minor(number)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _small(number: int) -> int:
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & ~0xFF)
