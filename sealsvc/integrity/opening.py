"""Opening a PI channel, and looking what could be: everything here blocks, and runs in workers."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl
from typing import Any

import numpy as np
from _sealsvc_pi_device import ffi, lib

from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import IoMode
from sealsvc.integrity.block_device import Capability, device_under, name_of, unavailable
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.pi_device import PiChannel, PiChannelInfo, PiPathInfo
from sealsvc.runtime.closing import close_later


@dataclass(frozen=True)
class Opened:
    """What a worker made: the holder's two descriptors are not in `native`."""

    native: Any
    info: PiChannelInfo
    fds: tuple[int, int]


def described(fd: int) -> PiPathInfo:
    """What the device path could do for an open file."""
    name = name_of(os.fstat(fd).st_dev)
    try:
        with device_under(fd, writable=False) as (_, found):
            return _info(name, found)
    except Refusal as refusal:
        return PiPathInfo(device=name, available=False, reason=refusal.message)


def _info(name: str, found: Capability) -> PiPathInfo:
    checkers = ["service", "device"] if found.checked else ["service"]
    return PiPathInfo(
        device=name,
        available=True,
        profile=found.profile,
        interval=found.interval,
        metadata=found.metadata,
        pi_offset=found.pi_offset,
        pi_size=found.pi_size,
        guard=found.guard,
        app_size=found.app_size,
        ref_size=found.ref_size,
        block=found.block,
        checkers=checkers,
    )


def open_channel(grants: Grants, seal: Seal, request: PiChannel, file: int) -> Opened:
    writable = seal.request.iomode is IoMode.RW
    _refuse_if_moved(grants, seal, file)
    with device_under(file, writable=writable) as (device, found):
        if request.profile not in (None, found.profile):
            raise unavailable(f"the device keeps {found.profile}, not {request.profile}")
        _refuse_if_unaligned(seal, found)
        _drop_cache(file, seal)
        return _made(seal, request, os.dup(device), found, writable=writable)


def _refuse_if_moved(grants: Grants, seal: Seal, file: int) -> None:
    """The map is promised; writing to a disk below its file system deserves a second look."""
    present = grants.host.read_map(file, seal.effective)
    if found := extents.first_difference(seal.map, present, seal.effective):
        raise unavailable(f"the map of {seal.path} is not the recorded one: {found}")


def _refuse_if_unaligned(seal: Seal, found: Capability) -> None:
    granule = max(found.interval, found.block)
    if (seal.range.offset | seal.range.length) % granule:
        raise unavailable(
            f"the sealed range {seal.range} is not made of whole blocks of the device ({granule})"
        )
    if np.bitwise_or.reduce(seal.map[:, :3], axis=None) % np.uint64(granule):
        raise unavailable(f"the extents of {seal.path} are not made of blocks of {granule}")


def _drop_cache(file: int, seal: Seal) -> None:
    os.fsync(file)
    result = lib.pi_cache_drop(file, seal.range.offset, seal.range.length)
    if result < 0:
        raise unavailable(
            f"{seal.path} cannot be taken out of the page cache: {os.strerror(-result)} (unmap it)"
        )


def _made(
    seal: Seal, request: PiChannel, device: int, found: Capability, *, writable: bool
) -> Opened:
    with ExitStack() as undo:
        undo.callback(os.close, device)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        undo.callback(theirs.close)
        memory = os.memfd_create("seal-pi", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        undo.callback(os.close, memory)
        size = -(-request.bytes // lib.SEAL_CHANNEL_ALIGN) * lib.SEAL_CHANNEL_ALIGN
        os.ftruncate(memory, size)
        fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
        handed = os.dup(memory)
        undo.callback(os.close, handed)
        rows = np.ascontiguousarray(seal.map, dtype=np.uint64)
        map = ffi.from_buffer("struct seal_extent[]", rows)
        options = ffi.new(
            "struct seal_channel_options *",
            {
                "device": device,
                "file": seal.hold.anchor,
                "socket": ours.fileno(),
                "memory": memory,
                "size": size,
                "writable": writable,
                "offset": seal.range.offset,
                "length": seal.range.length,
                "extents": map,
                "extent_count": len(rows),
            },
        )
        lib.seal_pi_capability(device, ffi.addressof(options, "layout"))
        out = ffi.new("struct seal_channel **")
        result = lib.seal_channel_open(options, out)
        if result < 0:
            raise unavailable(f"io_uring with PI: {os.strerror(-result)}")
        undo.pop_all()
        ours.detach()
    info = PiChannelInfo(
        seal=seal.id,
        device=_info(name_of(seal.file.device), found),
        bytes=size,
        offset=seal.range.offset,
        length=seal.range.length,
        writable=writable,
    )
    return Opened(out[0], info, (theirs.detach(), handed))


def undo(made: Opened) -> None:
    lib.seal_channel_close(made.native)
    close_later("pi channels", made.fds)
