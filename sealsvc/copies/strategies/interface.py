"""What every strategy is."""

from __future__ import annotations

from typing import Protocol

from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends

# Why an offload below the file system is refused where the copy holds no seals.
UNSEALED = "both files must be sealed by the copy"


class Strategy(Protocol):
    """One way to copy between two files; made anew for each copy, and closed after it.

    `instant`: its time does not depend on the amount of data. `offload`: the data goes around the
    destination's page cache, so that this must be dropped. `holes`: it copies holes as well.
    `most`: bytes in one call."""

    name: str
    instant: bool
    offload: bool
    holes: bool
    most: int

    def refusal(self, ends: Ends) -> str:
        """Why it cannot be used between these files; empty when it can."""
        ...

    def fits(self, ends: Ends, span: Span) -> Span | None:
        """The part of the span that it can copy (what is before and behind it is left to others);
        None: nothing of it. The span lies within one extent of each file, or within a hole."""
        ...

    def copy(self, ends: Ends, span: Span) -> Copied:
        """Copy a span that fits, or the first part of it."""
        ...

    def flush(self) -> None:
        """Bring to the device what it wrote below the destination's file system. Raises OSError."""
        ...

    def close(self) -> None: ...


class ByDescriptors:
    """What is common to strategies that work through the two descriptors."""

    instant = False
    offload = False
    holes = False
    most = 16 << 20

    def refusal(self, ends: Ends) -> str:  # noqa: ARG002 (the interface)
        return ""

    def fits(self, ends: Ends, span: Span) -> Span | None:  # noqa: ARG002
        return span

    def flush(self) -> None: ...

    def close(self) -> None: ...


def aligned(span: Span, granule: int) -> Span | None:
    """The largest part of the span with both ends, in both files, at multiples of `granule`."""
    if (span.source - span.destination) % granule:
        return None
    start = -span.source % granule
    end = span.length - span.source_end % granule
    return span.part(start, end) if start < end else None
