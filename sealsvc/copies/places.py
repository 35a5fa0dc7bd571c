"""From bytes of files to bytes of devices, under seals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sealsvc.copies.calls import Span
from sealsvc.copies.ends import End, Ends
from sealsvc.copies.stack import Stack
from sealsvc.core.extents import LENGTH, PHYSICAL, clip, unsuitable
from sealsvc.core.model import ByteRange


@dataclass(frozen=True, slots=True)
class Move:
    """`length` bytes from one place to another; devices as numbers of st_rdev, offsets in bytes."""

    source_device: int
    source: int
    destination_device: int
    destination: int
    length: int


def place_of(end: End, offset: int, length: int) -> int | None:
    """Where a range that lies in one extent begins on the file system's device; None: it is not
    one extent with a place."""
    span = ByteRange(offset, length)
    rows = clip(end.map, span)
    if not len(rows) or unsuitable(end.map, span):
        return None
    first = int(rows[0, PHYSICAL])
    together = first
    for row in rows:
        if int(row[PHYSICAL]) != together:
            return None
        together += int(row[LENGTH])
    return first


def is_written(end: End, span: Span) -> bool:
    """Has the destination written blocks of its own for all of the span, inside its size?"""
    if span.destination_end > end.size:
        return False
    return not unsuitable(end.map, ByteRange(span.destination, span.length))


def moves(ends: Ends, span: Span, stack: Stack) -> Iterator[Move] | None:
    """The span as moves between leaf devices, in order; None: it has no place below."""
    source = place_of(ends.source, span.source, span.length)
    destination = place_of(ends.destination, span.destination, span.length)
    if source is None or destination is None or not is_written(ends.destination, span):
        return None
    return _paired(
        stack,
        (ends.source.filesystem.device, source),
        (ends.destination.filesystem.device, destination),
        span.length,
    )


def _paired(
    stack: Stack, source: tuple[int, int], destination: tuple[int, int], length: int
) -> Iterator[Move]:
    """Both ways down, cut where either is cut."""
    done = 0
    while done < length:
        a = stack.first_segment(source[0], source[1] + done, length - done)
        b = stack.first_segment(destination[0], destination[1] + done, length - done)
        part = min(a.length, b.length)
        yield Move(a.device, a.offset, b.device, b.offset, part)
        done += part
