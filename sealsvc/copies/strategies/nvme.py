"""NVMe Copy: the controller copies within one namespace."""

from __future__ import annotations

import errno
import os

from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.copies.places import moves
from sealsvc.copies.stack import NoWay, Stack, name_of, node_of
from sealsvc.copies.strategies.interface import aligned
from sealsvc.native import ffi, lib


class NvmeCopy:
    name = "nvme"
    instant = False
    offload = True
    holes = False
    most = 16 << 20

    def __init__(self) -> None:
        self._stack = Stack()
        self._fd = -1
        self._limits = ffi.new("struct seal_nvme_limits *")

    def refusal(self, ends: Ends) -> str:
        try:
            leaves = self._stack.leaves(ends.source.filesystem.device)
            leaves |= self._stack.leaves(ends.destination.filesystem.device)
            if len(leaves) != 1 or not name_of(leaf := leaves.pop()).startswith("nvme"):
                return "the files are not in one NVMe namespace"
            if reason := self._open(leaf):
                return reason
        except NoWay as reason_below:
            return str(reason_below)
        return "" if ends.pinned else "both files must be sealed by the copy"

    def _open(self, device: int) -> str:
        if self._fd < 0:
            try:
                self._fd = os.open(node_of(device), os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                return f"{node_of(device)}: {error.strerror}"
            result = lib.seal_nvme_limits(self._fd, self._limits)
            if result < 0:
                return f"Identify of {node_of(device)} failed: {os.strerror(-result)}"
        if not self._limits.copies:
            return f"the controller of {node_of(device)} has no Copy, or its blocks have metadata"
        if not (self._limits.range_blocks and self._limits.total_blocks):
            return f"{node_of(device)} sets no copy limits (MSSRL, MCL)"
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
        ranges = int(self._limits.ranges * self._limits.range_blocks)
        most = min(ranges, int(self._limits.total_blocks))
        for move in moves(ends, span, self._stack) or ():
            if (move.source | move.destination | move.length) % block:
                return Copied(done, errno.EINVAL)
            source, destination = move.source // block, move.destination // block
            left = move.length // block
            while left:
                part = min(left, most)
                status = lib.seal_nvme_copy(
                    self._fd, self._limits.namespace_id, source, destination, self._limits, part
                )
                if status:
                    return Copied(done, -status if status < 0 else errno.EREMOTEIO)
                source, destination, left = source + part, destination + part, left - part
                done += part * block
            _forget(self._fd, move.destination, move.length)
        return Copied(done)

    def flush(self) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)  # a Flush of the namespace (blkdev_issue_flush)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _forget(fd: int, offset: int, length: int) -> None:
    """The device's own page cache."""
    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
