"""Pictures of extent maps: a table, the file as a strip, and where its parts lie on the device.

The strip runs over file offsets: one column is a stretch of the file, a change of glyph (or of
colour) is the boundary of an extent. The placement runs over device offsets: a column's digit says
which tenth of the file begins there.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from sealsvc.cli.listing import Listing
from sealsvc.cli.units import about_size, exact_size
from sealsvc.protocol.seals import Extent

# (glyph, its ASCII stand-in, style, meaning)
_HOLE = ("·", ".", "dim", "hole")
_EVEN = ("█", "#", "cyan", "data")
_ODD = ("▓", "=", "blue", "data (the next extent)")
_MANY = ("╫", "|", "bold white", "several extents")
# First match wins: what keeps a map from being sealed comes before what does not.
_FLAGGED = (
    ("delalloc", ("?", "?", "bold red", "not yet allocated")),
    ("inline", ("i", "i", "bold red", "inline in the inode")),
    ("encoded", ("e", "e", "bold red", "encoded")),
    ("shared", ("≡", "S", "magenta", "shared (reflink)")),
    ("unwritten", ("░", "-", "yellow", "unwritten")),
)
_LEGEND = (_EVEN, _ODD, _MANY, _HOLE, *(look for _, look in _FLAGGED))

Look = tuple[str, str, str, str]


def extent_table(extents: Sequence[Extent], limit: int | None = None) -> Listing:
    made = Listing(
        "#", "LOGICAL", "PHYSICAL", "LENGTH", "FLAGS", right=["#", "LOGICAL", "PHYSICAL", "LENGTH"]
    )
    for number, extent in enumerate(extents[:limit]):
        made.add_row(
            str(number),
            exact_size(extent.logical),
            exact_size(extent.physical),
            exact_size(extent.length),
            ", ".join(extent.flags) or "-",
        )
    return made


def look_of(extent: Extent, number: int) -> Look:
    for word, look in _FLAGGED:
        if any(word in flag.lower().replace("data_", "") for flag in extent.flags):
            return look
    return _ODD if number % 2 else _EVEN


def strip(extents: Sequence[Extent], size: int, width: int) -> list[Look]:
    """What each of `width` columns shows of a file of `size` bytes (at least 1)."""
    columns = [_HOLE] * width
    owner = [-1] * width
    for number, extent in enumerate(extents):
        first, last = _columns(extent.logical, extent.length, size, width)
        for column in range(first, last + 1):
            columns[column] = look_of(extent, number) if owner[column] < 0 else _MANY
            owner[column] = number
    return columns


def placement(extents: Sequence[Extent], size: int, width: int) -> str:
    """The device from the first to the last extent: digits for tenths of the file, "." between."""
    placed = [extent for extent in extents if extent.physical]
    if not placed:
        return ""
    start, end = _device_span(placed)
    columns = ["."] * width
    for extent in placed:
        first, last = _columns(extent.physical - start, extent.length, end - start, width)
        for column in range(first, last + 1):
            # Where in the file this column of a long extent begins.
            into = max(0, column * (end - start) // width - (extent.physical - start))
            columns[column] = str(min(9, (extent.logical + into) * 10 // size))
    return "".join(columns)


def drawing(extents: Sequence[Extent], size: int, width: int, ascii_only: bool) -> Text:
    looks = strip(extents, size, width)
    text = Text(f"file 0 to {about_size(size)}\n", no_wrap=True)
    for look in looks:
        text.append(look[ascii_only], style=look[2])
    text.append("\n")
    for look in _LEGEND:
        if look in looks:
            text.append(look[ascii_only], style=look[2]).append(f" {look[3]}  ")
    if sketch := placement(extents, size, width):
        start, end = _device_span([extent for extent in extents if extent.physical])
        text.append(f"\n\ndevice {about_size(start)} to {about_size(end)}, by tenth of the file\n")
        text.append(sketch)
    return text


def _columns(offset: int, length: int, whole: int, width: int) -> tuple[int, int]:
    first = min(offset * width // whole, width - 1)
    last = min((offset + max(length, 1) - 1) * width // whole, width - 1)
    return first, last


def _device_span(placed: Sequence[Extent]) -> tuple[int, int]:
    start = min(extent.physical for extent in placed)
    return start, max(extent.physical + extent.length for extent in placed)
