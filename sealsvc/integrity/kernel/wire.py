"""What the service and the process that hears errors of file systems say to each other: a message
in msgpack for each packet of a SOCK_SEQPACKET socket."""

from __future__ import annotations

import msgspec

MOST = 1 << 16  # bytes of a packet


class Watch(msgspec.Struct, array_like=True, tag="watch"):
    """Listen to the file system of the descriptor beside it, on `device`. `monitor` allows the
    monitor of XFS, of which a file system has one at most."""

    device: int
    monitor: bool


class Watched(msgspec.Struct, array_like=True, tag="watched"):
    """It is listened to by `source`: fanotify or xfs."""

    device: int
    source: str


class Failed(msgspec.Struct, array_like=True, tag="failed"):
    """It cannot be listened to."""

    device: int
    reason: str


class KernelError(msgspec.Struct, array_like=True, frozen=True):
    """`inode` and `generation` are 0 for an error of the file system as a whole; the generation
    also where the inode itself could not be read. `count` errors became this one. `offset` and
    `length`, bytes, are of the file, or of the device at `physical` (-1: none). `detail` is what
    the kernel says beyond the errno."""

    errno: int
    inode: int = 0
    generation: int = 0
    count: int = 1
    offset: int = 0
    length: int = 0
    physical: int = -1
    detail: str = ""


class Told(msgspec.Struct, array_like=True, tag="told"):
    """Errors of the file system on `device`, in order. `lost` more were not kept by the kernel."""

    device: int
    errors: list[KernelError]
    lost: int = 0


FromService = Watch
FromProcess = Watched | Failed | Told


def counted(error: KernelError, count: int) -> KernelError:
    """The same, standing for so many."""
    return msgspec.structs.replace(error, count=count)


encoded = msgspec.msgpack.Encoder().encode
decoded_watch = msgspec.msgpack.Decoder(Watch).decode
decoded = msgspec.msgpack.Decoder(FromProcess).decode
