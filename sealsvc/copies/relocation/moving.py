"""Moving the blocks of one file: what is done while its holders go on, and what while they pause.

Each file system has its own way. All calls are made in worker threads, one at a time.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from sealsvc.copies.relocation import calls
from sealsvc.copies.relocation.dirty import DirtyLog
from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.linux import native
from sealsvc.linux.host import ExtentMap, Target

_CHUNK = 1 << 20  # bytes
_ROUNDS = 5  # copies before the pause, while much is written to
_FEW = 8 << 20  # bytes that are left for the pause
_TICK = 0.02  # seconds: two ticks of the slowest clock that file times are taken from
_PIECE = 256  # blocks that EXT4_IOC_MOVE_EXT is given at once
_BUDGET = 0.25  # seconds of one pause on ext4

# Told how many bytes of how many are done; raises what ends the relocation.
Progress = Callable[[int, int], None]


class Moving(Protocol):
    tracking: str  # how it is known what was written to meanwhile

    def copy(self, progress: Progress) -> None:
        """While holders go on."""
        ...

    def swap(self, progress: Progress) -> bool:
        """While they pause. False: there is more to do, in another pause."""
        ...

    def close(self) -> None: ...


class Exchange:
    """XFS: the data is copied to the donor beforehand, then all extents are exchanged at once. That
    the file did not change since it was copied is checked by the kernel in the same transaction."""

    def __init__(self, name: str, target: Target, donor: int, rows: ExtentMap) -> None:
        self.target, self.donor = target, donor
        self._spans = [
            ByteRange(logical, length)
            for logical, _, length, flags in rows.tolist()
            if not flags & extents.EXTENT_UNWRITTEN
        ]
        self._layout = _layout(target.fd)
        self._copied = False
        self.tracking = "trace"
        self._log: DirtyLog | None = None
        try:
            self._log = DirtyLog(name, target.file.inode)
        except (OSError, ValueError):
            self.tracking = "compare"

    def copy(self, progress: Progress) -> None:
        for _ in range(_ROUNDS):
            written = self._written()
            if self._copied and sum(span.length for span in written) <= _FEW:
                self._copy(written, lambda *_: None)
                break
            self._copy(written, progress)
            self._copied = True
            if self._log is None:
                break
        os.fsync(self.donor)

    def swap(self, progress: Progress) -> bool:
        sample = self._sample()
        written = self._written()
        if _layout(self.target.fd) != self._layout:
            raise Refusal(
                "try-later", f"blocks of {self.target.path} were freed or allocated meanwhile"
            )
        self._copy(written, lambda *_: None)
        os.fsync(self.donor)
        try:
            sample()
        except OSError as error:
            if error.errno == errno.EBUSY:  # somebody wrote to it
                return False
            raise
        progress(self.target.size, self.target.size)
        return True

    def _sample(self) -> Callable[[], None]:
        """Take the file's times; what is returned exchanges the extents if they are still those."""
        fd, donor, size = self.target.fd, self.donor, self.target.size
        try:
            sample = calls.start_commit(fd)
        except OSError:
            taken = os.fstat(fd)
            time.sleep(_TICK)
            return lambda: calls.swap_extents(fd, donor, taken)

        def commit() -> None:
            try:
                calls.commit_range(fd, donor, size, sample)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:  # a file system without the feature
                    raise
                calls.swap_extents(fd, donor, taken)

        taken = os.fstat(fd)
        time.sleep(_TICK)
        return commit

    def _written(self) -> list[ByteRange]:
        """What is to be copied (again). The log is taken first, and then the file is written back
        (dirty.py says why)."""
        written = self._log.take(self.target.size) if self._log is not None else None
        os.fsync(self.target.fd)
        if not self._copied:
            return self._spans
        if written is None:
            if self._log is not None:
                self.tracking = "trace, with events lost"
            return self._spans
        return [part for span in self._spans for one in written if (part := span.clipped(one))]

    def _copy(self, spans: Iterable[ByteRange], progress: Progress) -> None:
        buffer = memoryview(bytearray(_CHUNK))
        done = 0
        for span in spans:
            end = min(span.end, self.target.size)
            for offset in range(span.offset, end, _CHUNK):
                part = buffer[: min(_CHUNK, end - offset)]
                read = os.preadv(self.target.fd, [part], offset)
                if read != len(part):
                    raise Refusal("try-later", f"{self.target.path} was truncated meanwhile")
                write_all(self.donor, part, offset)
                done += read
                progress(done, self.target.size)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
        os.close(self.donor)


class Pieces:
    """ext4: the kernel copies and exchanges, folio by folio, and a reader never sees the file
    without its data. It is done in pieces, as many in one pause as there is time for."""

    tracking = "none is needed"

    def __init__(self, target: Target, donor: int, rows: ExtentMap) -> None:
        self.target, self.donor = target, donor
        self._left = extents.spans(rows)
        self._total = sum(span.length for span in self._left)

    def copy(self, progress: Progress) -> None:
        """Nothing: but what is written back now need not be in the pause."""
        os.fsync(self.target.fd)
        progress(self._total - sum(span.length for span in self._left), self._total)

    def swap(self, progress: Progress) -> bool:
        fd, deadline = self.target.fd, time.monotonic() + _BUDGET
        os.fsync(fd)
        block = self.target.filesystem.block_size
        while self._left and time.monotonic() < deadline:
            span = self._left.pop(0)
            length = min(span.length, _PIECE * block)
            # A folio that is larger than a block, or has been written back just now, would make
            # the kernel commit its journal before it tries again (ext4_move_extents).
            os.posix_fadvise(fd, span.offset, length, os.POSIX_FADV_DONTNEED)
            moved = calls.move_extents(fd, self.donor, span.offset, length, block)
            if moved <= 0:
                raise Refusal("try-later", f"nothing of {self.target.path} can be moved now")
            if moved < span.length:
                self._left.insert(0, ByteRange(span.offset + moved, span.length - moved))
        os.fsync(fd)
        progress(self._total - sum(span.length for span in self._left), self._total)
        return not self._left

    def close(self) -> None:
        os.close(self.donor)


def _layout(fd: int) -> list[list[int]]:
    """Where the file has blocks, and which are written; not where they are."""
    return [[span.offset, span.length] for span in extents.spans(native.read_extents(fd, None))]


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Raises OSError."""
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
