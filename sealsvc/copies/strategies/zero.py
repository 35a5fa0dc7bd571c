"""Holes of the source: left as holes, punched, or written as zeros where the map must stay."""

from __future__ import annotations

import errno

from sealsvc.copies import calls
from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.core.extents import clip
from sealsvc.core.model import ByteRange
from sealsvc.linux import native

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01  # FALLOC_FL_* (include/uapi/linux/falloc.h)


class Zero:
    """Takes holes alone. The destination's size is settled at the end of the copy."""

    name = "zero"
    instant = True
    offload = False
    holes = True
    most = 1 << 30

    def refusal(self, ends: Ends) -> str:  # noqa: ARG002 (the interface)
        return ""

    def fits(self, ends: Ends, span: Span) -> Span | None:  # noqa: ARG002
        return span

    def copy(self, ends: Ends, span: Span) -> Copied:
        there = ends.destination
        if there.keeps_map:
            end = min(span.destination_end, there.size)
            written = calls.zeros(there.fd, span.destination, max(0, end - span.destination))
            whole = written.bytes == max(0, end - span.destination)
            return Copied(span.length) if whole and not written.error else written
        if not len(clip(there.map, ByteRange(span.destination, span.length))):
            return Copied(span.length)  # a hole, or behind the end
        try:
            native.fallocate(there.fd, _PUNCH_HOLE_KEEP_SIZE, span.destination, span.length)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                return Copied(0, error.errno or errno.EIO)
            return calls.zeros(there.fd, span.destination, span.length)
        return Copied(span.length)

    def flush(self) -> None: ...

    def close(self) -> None: ...
