"""Rows of a list, for a terminal of any width and for pipes.

What people copy (ids, ranges, numbers) is never cut. On a terminal that is too narrow, paths are
shortened in the middle, prose is wrapped, and columns that are marked as optional are left out.
When even that is not enough, the terminal wraps the lines. `-o wide` and pipes get everything.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterable, Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

_PATHS = frozenset({"PATH", "FILE", "MOUNT", "DEVICE"})
_PROSE = frozenset({"REASON", "NOTE", "WHY"})
_LEGIBLE = 28  # columns that a path or prose is narrowed to before others are left out
_LEAST = 12  # and afterwards, at the least
_GAP = "  "  # between two cells

_HEADER = Style(bold=True)

Cell = str | Text


class Listing:
    """`right` names columns of numbers, `optional` those that may be left out, the first first, and
    `sparse` those that may be where nothing stands in them."""

    def __init__(
        self,
        *headers: str,
        right: Iterable[str] = (),
        optional: Iterable[str] = (),
        sparse: Iterable[str] = (),
    ) -> None:
        self._headers = headers
        numbers = frozenset(right)
        self._is_right = [name in numbers for name in headers]
        self._optional = [headers.index(name) for name in optional]
        self._sparse = [headers.index(name) for name in sparse]
        self._flexible = [i for i, name in enumerate(headers) if name in _PATHS | _PROSE]
        self._rows: list[tuple[tuple[Cell, ...], str]] = []

    def add_row(self, *cells: Cell, style: str = "") -> None:
        self._rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        widths = self._widths(options.max_width)
        yield from self._line(self._headers, widths, _HEADER)
        styles = {style: Style.parse(style) for _, style in self._rows if style}
        for cells, style in self._rows:
            yield from self._line(cells, widths, styles.get(style))

    def _widths(self, room: int) -> dict[int, int]:
        """The width of each column that is shown."""
        widths = {
            i: max([len(header), *(_width(_plain(cells[i])) for cells, _ in self._rows)])
            for i, header in enumerate(self._headers)
        }
        # Columns without anything go first, then the others in their order.
        empty = [i for i in (*self._sparse, *self._optional) if not self._tells(i)]
        optional = [*empty, *(i for i in self._optional if i not in empty)]
        while _total(widths) > room:
            least = _LEGIBLE if optional else _LEAST
            if (optional and self._tells(optional[0])) or not optional:
                narrowed = [i for i in self._flexible if i in widths and widths[i] > least]
                if sum(widths[i] - least for i in narrowed) >= _total(widths) - room:
                    return _narrowed(widths, narrowed, _total(widths) - room)
            if not optional:
                break
            del widths[optional.pop(0)]
        return widths

    def _tells(self, column: int) -> bool:
        return any(_plain(cells[column]) != "-" for cells, _ in self._rows)

    def _line(
        self, cells: tuple[Cell, ...], widths: dict[int, int], base: Style | None
    ) -> Iterator[Segment]:
        """As few segments as there are changes of style: rich takes its time for each."""
        shown = [self._fitted(i, cells[i], width) for i, width in widths.items()]
        last = max(widths)
        for number in range(max(map(len, shown))):
            run, run_style = "", base
            for (i, width), lines in zip(widths.items(), shown, strict=True):
                text = lines[number] if number < len(lines) else ""
                cell = cells[i]
                style = base if isinstance(cell, str) or not cell.style else _style(cell.style)
                if self._is_right[i]:
                    text = " " * (width - _width(text)) + text
                elif i != last:
                    text += " " * (width - _width(text))
                if style is not run_style:
                    yield Segment(run, run_style)
                    run, run_style = "", style
                run += text if i == last else text + _GAP
            yield Segment(run + "\n", run_style)

    def _fitted(self, column: int, cell: Cell, width: int) -> list[str]:
        """The lines of a cell."""
        text = _plain(cell)
        if _width(text) <= width:
            return [text]
        if self._headers[column] in _PATHS:
            return [shortened(text, width)]
        # A path or a command in it stays whole: then the terminal wraps the line.
        wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        return wrapper.wrap(text) or [""]


def shortened(text: str, width: int) -> str:
    """The text with its middle left out, so that it is at most `width` (3 or more) columns wide."""
    if _width(text) <= width:
        return text
    if text.isascii():
        kept = width - 1
        return f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    head, tail = "", ""
    for front, back in zip(text, reversed(text), strict=True):
        if cell_len(head + tail + back) > width - 1:
            break
        tail = back + tail
        if cell_len(head + front + tail) > width - 1:
            break
        head += front
    return f"{head}…{tail}"


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


@functools.cache
def _style(style: str | Style) -> Style:
    return Style.parse(style) if isinstance(style, str) else style


def _plain(cell: Cell) -> str:
    return cell.plain if isinstance(cell, Text) else cell


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1)


def _narrowed(widths: dict[int, int], columns: list[int], by: int) -> dict[int, int]:
    """`by` columns less in all, taken from the widest first."""
    made = dict(widths)
    for _ in range(by):
        widest = max(columns, key=lambda i: made[i])
        made[widest] -= 1
    return made
