"""SCSI EXTENDED COPY (LID1) within one logical unit.

Never between two: targets that took a designator's word for it let a guest reach any unit
(CVE-2020-28374, CVE-2021-3139)."""

from __future__ import annotations

import errno
import os

from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.copies.places import moves
from sealsvc.copies.stack import NoWay, Stack, node_of, sysfs_of
from sealsvc.copies.strategies.interface import aligned
from sealsvc.native import ffi, lib


class ExtendedCopy:
    name = "xcopy"
    instant = False
    offload = True
    holes = False
    most = 16 << 20

    def __init__(self) -> None:
        self._stack = Stack()
        self._fd = -1
        self._limits = ffi.new("struct seal_xcopy_limits *")

    def refusal(self, ends: Ends) -> str:
        try:
            leaves = self._stack.leaves(ends.source.filesystem.device)
            leaves |= self._stack.leaves(ends.destination.filesystem.device)
            if len(leaves) != 1:
                return "the files are not in one logical unit"
            leaf = leaves.pop()
            if not (sysfs_of(leaf) / "device/scsi_device").is_dir():
                return f"{node_of(leaf)} is not a SCSI disk"
            if reason := self._open(leaf):
                return reason
        except NoWay as reason_below:
            return str(reason_below)
        return "" if ends.pinned else "both files must be sealed by the copy"

    def _open(self, device: int) -> str:
        if self._fd >= 0:
            return ""
        try:
            fd = os.open(node_of(device), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            return f"{node_of(device)}: {error.strerror}"
        result = lib.seal_xcopy_limits(fd, self._limits)
        if result < 0:
            os.close(fd)
            return f"{node_of(device)} has no EXTENDED COPY ({os.strerror(-result)})"
        self._fd = fd
        return ""

    def fits(self, ends: Ends, span: Span) -> Span | None:
        try:
            found = moves(ends, span, self._stack)
            if found is None:
                return None
            first, block = next(found), self._limits.block
            head = -first.source % block
            core = aligned(Span(first.source, first.destination, span.length), block)
            return span.part(head, head + core.length) if core else None
        except NoWay:
            return None

    def copy(self, ends: Ends, span: Span) -> Copied:
        done, block = 0, int(self._limits.block)
        for move in moves(ends, span, self._stack) or ():
            if (move.source | move.destination | move.length) % block:
                return Copied(done, errno.EINVAL)
            source, destination = move.source // block, move.destination // block
            left = move.length // block
            while left:
                part = min(left, int(self._limits.blocks))
                status = lib.seal_xcopy(self._fd, self._limits, source, destination, part)
                if status:
                    return Copied(done, -status if status < 0 else errno.EREMOTEIO)
                source, destination, left = source + part, destination + part, left - part
                done += part * block
            os.posix_fadvise(self._fd, move.destination, move.length, os.POSIX_FADV_DONTNEED)
        return Copied(done)

    def flush(self) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)  # SYNCHRONIZE CACHE

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
