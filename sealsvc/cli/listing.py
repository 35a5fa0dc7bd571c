"""Rows of a list, for a terminal of any width and for pipes.

What people copy (ids, ranges, numbers) is never cut. On a terminal that is too narrow, paths are
shortened in the middle, prose is wrapped, and columns that are marked as optional are left out.
When even that is not enough, the terminal wraps the lines. `-o wide` and pipes get everything.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

_PATHS = frozenset({"PATH", "MOUNT", "DEVICE"})
_PROSE = frozenset({"REASON", "NOTE", "WHY"})
_LEAST = 12  # columns that a path or prose is not narrowed below
_GAP = 2  # columns between two cells

Cell = str | Text


class Listing:
    """`right` names columns of numbers, `optional` those that may be left out, the first first."""

    def __init__(
        self, *headers: str, right: Iterable[str] = (), optional: Iterable[str] = ()
    ) -> None:
        self._headers = headers
        self._right = frozenset(right)
        self._optional = [headers.index(name) for name in optional]
        self._rows: list[tuple[tuple[Cell, ...], str]] = []

    def add_row(self, *cells: Cell, style: str = "") -> None:
        self._rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        widths = self._widths(options.max_width)
        yield from self._line(self._headers, widths, "bold")
        for cells, style in self._rows:
            yield from self._line(cells, widths, style)

    def _widths(self, room: int) -> dict[int, int]:
        """The width of each column that is shown."""
        widths = {
            i: max(cell_len(header), *(cell_len(_plain(cells[i])) for cells, _ in self._rows))
            if self._rows
            else cell_len(header)
            for i, header in enumerate(self._headers)
        }
        flexible = [i for i, name in enumerate(self._headers) if name in _PATHS | _PROSE]
        optional = list(self._optional)
        while _total(widths) > room:
            narrowed = [i for i in flexible if i in widths and widths[i] > _LEAST]
            if sum(widths[i] - _LEAST for i in narrowed) >= _total(widths) - room:
                return _narrowed(widths, narrowed, _total(widths) - room)
            if not optional:
                break
            del widths[optional.pop(0)]
        return widths

    def _line(
        self, cells: tuple[Cell, ...], widths: dict[int, int], style: str
    ) -> Iterator[Segment]:
        shown = {i: self._fitted(i, cells[i], width) for i, width in widths.items()}
        last = max(widths)
        base = Style.parse(style) if style else None
        for number in range(max(len(parts) for parts in shown.values())):
            for i, width in widths.items():
                text = shown[i][number] if number < len(shown[i]) else ""
                cell = cells[i]
                look = Style.parse(str(cell.style)) if isinstance(cell, Text) else base
                padding = " " * max(0, width - cell_len(text))
                if self._headers[i] in self._right:
                    text = padding + text
                elif i != last:
                    text += padding
                yield Segment(text, look)
                if i != last:
                    yield Segment(" " * _GAP)
            yield Segment.line()

    def _fitted(self, column: int, cell: Cell, width: int) -> list[str]:
        """The lines of a cell."""
        text = _plain(cell)
        if cell_len(text) <= width:
            return [text]
        if self._headers[column] in _PATHS:
            return [shortened(text, width)]
        return textwrap.wrap(text, width) or [""]


def shortened(text: str, width: int) -> str:
    """The text with its middle left out, so that it is at most `width` (3 or more) columns wide."""
    if cell_len(text) <= width:
        return text
    head, tail = "", ""
    for front, back in zip(text, reversed(text), strict=True):
        if cell_len(head + tail + back) > width - 1:
            break
        tail = back + tail
        if cell_len(head + front + tail) > width - 1:
            break
        head += front
    return f"{head}…{tail}"


def _plain(cell: Cell) -> str:
    return cell.plain if isinstance(cell, Text) else cell


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def _narrowed(widths: dict[int, int], columns: list[int], by: int) -> dict[int, int]:
    """`by` columns less in all, taken from the widest first."""
    made = dict(widths)
    for _ in range(by):
        widest = max(columns, key=lambda i: made[i])
        made[widest] -= 1
    return made
