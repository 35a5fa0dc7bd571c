"""O_DIRECT with several blocks in flight: nothing goes through the page cache."""

from __future__ import annotations

import errno
import os

from sealsvc.copies import calls
from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.copies.strategies.interface import ByDescriptors, aligned

_BLOCK = 1 << 20  # bytes of one request
_DEPTH = 8
_GRANULE = 4096  # what every logical block size in use divides


class Direct(ByDescriptors):
    name = "direct"

    def __init__(self) -> None:
        self._fds: tuple[int, int] | None = None

    def refusal(self, ends: Ends) -> str:
        if ends.source.keeps_map or ends.destination.keeps_map:
            return "a file is sealed: a second descriptor for O_DIRECT would be a conflict"
        if ends.source.dax or ends.destination.dax:
            return "DAX files have no page cache to go around"
        if ends.same_file:
            return "one file: its page cache would be behind the copy"
        if self._fds is None:
            try:
                with calls.own_rights():  # no more than the descriptors' own modes
                    self._fds = _reopened(ends)
            except OSError as error:
                return f"no O_DIRECT here ({error.strerror})"
        return ""

    def fits(self, ends: Ends, span: Span) -> Span | None:  # noqa: ARG002 (the interface)
        return aligned(span, _GRANULE)

    def copy(self, ends: Ends, span: Span) -> Copied:  # noqa: ARG002
        if self._fds is None:
            return Copied(0, errno.EINVAL)
        return calls.direct(*self._fds, span, _BLOCK, _DEPTH)

    def close(self) -> None:
        for fd in self._fds or ():
            os.close(fd)
        self._fds = None


def _reopened(ends: Ends) -> tuple[int, int]:
    """The same files by descriptions of their own: O_DIRECT on the asker's would change theirs."""
    flags = os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK
    source = os.open(f"/proc/self/fd/{ends.source.fd}", os.O_RDONLY | flags)
    try:
        return source, os.open(f"/proc/self/fd/{ends.destination.fd}", os.O_WRONLY | flags)
    except OSError:
        os.close(source)
        raise
