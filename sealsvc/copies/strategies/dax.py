"""Between two mappings of persistent memory, with stores that go around the processor's cache."""

from __future__ import annotations

import errno

from sealsvc.copies import calls
from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.copies.places import is_written
from sealsvc.copies.strategies.interface import ByDescriptors, aligned

_PAGE = 4096


class Dax(ByDescriptors):
    name = "dax"

    def refusal(self, ends: Ends) -> str:
        if not (ends.source.dax and ends.destination.dax):
            return "not both files are DAX"
        if not ends.pinned:
            return "a truncation would end the copy by SIGBUS: both files must be sealed by it"
        return ""

    def fits(self, ends: Ends, span: Span) -> Span | None:
        return aligned(span, _PAGE) if is_written(ends.destination, span) else None

    def copy(self, ends: Ends, span: Span) -> Copied:
        copied = calls.dax(ends.source.fd, ends.destination.fd, span)
        # A page that cannot be had, which a load would be told by SIGBUS (madvise(2)).
        gone = copied.error == errno.EFAULT
        return Copied(copied.bytes, errno.EIO) if gone else copied
