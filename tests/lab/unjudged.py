"""Stands for a judgement that is wrong: changes a map, and the bpf programs let it pass.

python -m tests.lab.unjudged PINS punch|exchange|move FILE [OTHER]
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

from sealsvc.doctor import syscalls

_SYS_BPF, _BPF_OBJ_GET = 321, 7
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_CHUNK = 65536


class _Attributes(ctypes.Structure):
    _fields_ = (("path", ctypes.c_uint64), ("fd", ctypes.c_uint32), ("flags", ctypes.c_uint32))


def pass_unjudged(pins: str) -> None:
    """Take the service's exemption over, as root can (struct seal_bpf_control)."""
    path = ctypes.create_string_buffer(f"{pins}/maps/seal_control".encode())
    attributes = _Attributes(ctypes.addressof(path), 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(_SYS_BPF, _BPF_OBJ_GET, ctypes.byref(attributes), ctypes.sizeof(attributes))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    with mmap.mmap(fd, mmap.PAGESIZE) as control:
        control[20:24] = os.getpid().to_bytes(4, "little")
        control[24:32] = started.to_bytes(8, "little")


def change(act: str, fd: int, other: int) -> None:
    if act == "punch":
        syscalls.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, _CHUNK, _CHUNK)
        return
    for _ in range(2):  # there, and back
        if act == "exchange":
            syscalls.exchange_range(other, fd, 0, _CHUNK)
        else:
            syscalls.move_extents(fd, other, 0, _CHUNK)


if __name__ == "__main__":
    pass_unjudged(sys.argv[1])
    opened = [os.open(name, os.O_RDWR) for name in sys.argv[3:]]
    change(sys.argv[2], opened[0], opened[-1])
