"""What copy commands of devices have in common: both files on one device, addressed in blocks."""

from __future__ import annotations

import errno
import os

from sealsvc.copies.calls import Copied, Span, own_rights
from sealsvc.copies.ends import Ends
from sealsvc.copies.page_cache import drop_range
from sealsvc.copies.places import moves
from sealsvc.copies.stack import Stack, Unresolved, node_of
from sealsvc.copies.strategies.interface import UNSEALED, aligned


class DeviceCopy:
    """`block` in bytes, `most_blocks` of one command; both known once `_look` said yes."""

    name = ""
    instant = False
    offload = True
    holes = False
    most = 16 << 20

    def __init__(self) -> None:
        self._stack = Stack()
        self._fd = -1
        self.block = self.most_blocks = 0

    def _look(self, device: int) -> str:
        """Ask the open device for its limits; why it cannot copy, or nothing."""
        raise NotImplementedError

    def _command(self, source: int, destination: int, blocks: int) -> int:
        """One command: 0, -errno, or the device's own status (> 0)."""
        raise NotImplementedError

    def refusal(self, ends: Ends) -> str:
        if not ends.pinned:  # first: looking at what is below takes longer than a clone
            return UNSEALED
        try:
            leaves = self._stack.leaves(ends.source.filesystem.device)
            leaves |= self._stack.leaves(ends.destination.filesystem.device)
            if len(leaves) != 1:
                return "the files are not on one device"
            if reason := self._opened(leaves.pop()):
                return reason
        except Unresolved as reason_below:
            return str(reason_below)
        return ""

    def _opened(self, device: int) -> str:
        if self._fd >= 0:
            return ""
        if reason := self._wrong(device):
            return reason
        try:
            with own_rights():
                self._fd = os.open(node_of(device), os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            return f"{node_of(device)}: {error.strerror}"
        return self._look(device)

    def _wrong(self, device: int) -> str:
        """Why a device need not be opened: it is of another kind."""
        raise NotImplementedError

    def fits(self, ends: Ends, span: Span) -> Span | None:
        try:
            found = moves(ends, span, self._stack)
            if found is None:
                return None
            first = next(found)
        except Unresolved:
            return None
        core = aligned(Span(first.source, first.destination, span.length), self.block)
        head = -first.source % self.block
        return span.part(head, head + core.length) if core else None

    def copy(self, ends: Ends, span: Span) -> Copied:
        """What counts as done ends with the last command that succeeded."""
        done = 0
        for move in moves(ends, span, self._stack) or ():
            if (move.source | move.destination | move.length) % self.block:
                return Copied(done, errno.EINVAL)
            below = Span(move.source, move.destination, move.length)
            while below.length:
                part = below.part(0, min(below.length, self.most_blocks * self.block))
                status = self._command(*(n // self.block for n in _numbers(part)))
                if status:
                    return Copied(done, -status if status < 0 else errno.EREMOTEIO)
                done += part.length
                below = below.part(part.length, below.length)
            # Who read the device itself has its old blocks in the device's page cache.
            drop_range(self._fd, move.destination, move.length)
        return Copied(done)

    def flush(self) -> None:
        """Flush of NVMe, SYNCHRONIZE CACHE of SCSI (blkdev_fsync, block/fops.c)."""
        if self._fd >= 0:
            os.fsync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _numbers(span: Span) -> tuple[int, int, int]:
    return span.source, span.destination, span.length
