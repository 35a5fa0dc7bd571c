"""Interval algebra on extent maps. Pure: no I/O.

A map is an (n, 4) array of uint64, one row for each extent: logical, physical, length (all in
bytes), flags (FIEMAP_EXTENT_*). Rows are in order of `logical` and do not overlap, as
native.read_extents returns them; what no row covers is a hole.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import starmap
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from sealsvc.core.model import ByteRange

ExtentMap = NDArray[np.uint64]
Column = NDArray[np.uint64]
Reason = Literal[
    "hole", "inline", "encoded", "delalloc", "unknown", "unwritten", "shared", "not-aligned"
]

LOGICAL, PHYSICAL, LENGTH, FLAGS = range(4)  # the columns

# include/uapi/linux/fiemap.h
EXTENT_LAST = 0x1
EXTENT_UNKNOWN = 0x2
EXTENT_DELALLOC = 0x4
EXTENT_ENCODED = 0x8
EXTENT_ENCRYPTED = 0x80
EXTENT_NOT_ALIGNED = 0x100
EXTENT_INLINE = 0x200
EXTENT_TAIL = 0x400
EXTENT_UNWRITTEN = 0x800
EXTENT_MERGED = 0x1000
EXTENT_SHARED = 0x2000

FLAG_NAMES: dict[int, str] = {
    EXTENT_LAST: "last",
    EXTENT_UNKNOWN: "unknown",
    EXTENT_DELALLOC: "delalloc",
    EXTENT_ENCODED: "encoded",
    EXTENT_ENCRYPTED: "encrypted",
    EXTENT_NOT_ALIGNED: "not-aligned",
    EXTENT_INLINE: "inline",
    EXTENT_TAIL: "tail",
    EXTENT_UNWRITTEN: "unwritten",
    EXTENT_MERGED: "merged",
    EXTENT_SHARED: "shared",
}

# Flags of the report, not of the extent's place: an extent loses LAST when another is added.
_PASSING = EXTENT_LAST | EXTENT_MERGED

# Flags of extents whose `physical` is not the place of the byte at `logical`: it is not advanced
# when the extent's start is cut off.
_PLACELESS = EXTENT_UNKNOWN | EXTENT_DELALLOC | EXTENT_ENCODED | EXTENT_INLINE | EXTENT_TAIL

# In order of precedence: first what no preparation can change, then what must be changed before the
# next can be judged. FIEMAP also sets NOT_ALIGNED on inline extents, and UNKNOWN on delayed ones.
_UNSUITABLE: tuple[tuple[int, Reason, str], ...] = (
    (
        EXTENT_INLINE | EXTENT_TAIL,
        "inline",
        "no preparation gives inline data blocks of its own: grow the file beyond its inode, or"
        " keep it on a file system without inline data",
    ),
    (
        EXTENT_ENCODED | EXTENT_ENCRYPTED,
        "encoded",
        "no preparation helps: the blocks do not hold the file's bytes (compressed or encrypted)",
    ),
    (EXTENT_DELALLOC, "delalloc", "prepare=convert (or an fsync) writes it to blocks of its own"),
    (
        EXTENT_UNKNOWN,
        "unknown",
        "no preparation helps: the file system does not tell where the data lies",
    ),
    (EXTENT_UNWRITTEN, "unwritten", "prepare=convert makes it written"),
    (EXTENT_SHARED, "shared", "prepare=unshare gives the file blocks of its own"),
    (
        EXTENT_NOT_ALIGNED,
        "not-aligned",
        "no preparation helps: the data does not begin at a block boundary of the device",
    ),
    # No extent at all. Must be the last entry.
    (0, "hole", "prepare=allocate,convert gives it blocks"),
)
_HOLE = len(_UNSUITABLE) - 1
_FINE = len(_UNSUITABLE)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first byte of the file at which two maps differ, and what each has there, as text."""

    offset: int
    expected: str
    found: str


class Unsuitable(msgspec.Struct, frozen=True):
    """A stretch that cannot be sealed as it is; `advice` says which preparation mends it."""

    range: ByteRange
    reason: Reason
    advice: str


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """Statistics of a map. `contiguous` counts extents that continue the one before them in the
    file and on the device, `runs` what is left when those are joined. `mapped` is the sum of the
    lengths, `largest` and `mean` are lengths of runs, in bytes."""

    extents: int
    contiguous: int
    runs: int
    mapped: int
    largest: int
    mean: float


def flag_names(flags: int) -> list[str]:
    """The names of FIEMAP_EXTENT_* flags; flags without a name as one hexadecimal number."""
    known = [name for bit, name in FLAG_NAMES.items() if flags & bit]
    unnamed = flags & ~sum(FLAG_NAMES)
    return [*known, hex(unnamed)] if unnamed else known


def clip(map: ExtentMap, span: ByteRange) -> ExtentMap:
    """The parts of the extents that lie in the span, as a copy."""
    first = max(bisect_right(map[:, LOGICAL], span.offset) - 1, 0)
    behind = bisect_left(map[:, LOGICAL], span.end)
    if first < behind and int(map[first, LOGICAL] + map[first, LENGTH]) <= span.offset:
        first += 1
    part = map[first:behind].copy()
    if len(part):
        _cut_head(part[0], span.offset)
        part[-1, LENGTH] = min(int(part[-1, LENGTH]), span.end - int(part[-1, LOGICAL]))
    return part


def _cut_head(row: ExtentMap, offset: int) -> None:
    before = offset - int(row[LOGICAL])
    if before <= 0:
        return
    row[LOGICAL] = offset
    row[LENGTH] -= np.uint64(before)
    if not int(row[FLAGS]) & _PLACELESS:
        row[PHYSICAL] += np.uint64(before)


def normalise(map: ExtentMap) -> ExtentMap:
    """The same map with the fewest rows, so that equal maps are equal arrays however the kernel has
    split their extents. The flags LAST and MERGED are cleared; all others are part of the map.
    Returns a new (m, 4) array."""
    rows = map.copy() if map[:, LENGTH].all() else map[map[:, LENGTH] > 0]
    rows[:, FLAGS] &= np.uint64(~_PASSING & 0xFFFFFFFF)
    continues = _continues(rows)
    if not continues.any():
        return rows
    begins, ends = _groups(continues)
    merged = rows[begins]
    merged[:, LENGTH] = rows[ends, LOGICAL] + rows[ends, LENGTH] - merged[:, LOGICAL]
    return merged


def _groups(joined: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of the first and of the last row of each group. `joined` has n - 1 elements, which
    say for every row but the first whether it belongs to the one before it; n is at least 1."""
    breaks = np.flatnonzero(~joined)
    return np.append(0, breaks + 1), np.append(breaks, len(joined))


def _continues(rows: ExtentMap) -> NDArray[np.bool_]:
    """For every row but the first, whether it continues the extent of the row before it: n - 1
    elements."""
    step = rows[:-1, LENGTH].copy()
    step[(rows[:-1, FLAGS] & np.uint64(_PLACELESS)) != 0] = 0
    same_place: NDArray[np.bool_] = rows[:-1, PHYSICAL] + step == rows[1:, PHYSICAL]
    same_flags: NDArray[np.bool_] = rows[:-1, FLAGS] == rows[1:, FLAGS]
    return _adjoins(rows) & same_place & same_flags


def _adjoins(rows: ExtentMap) -> NDArray[np.bool_]:
    """For every row but the first, whether no hole is before it: n - 1 elements."""
    adjoins: NDArray[np.bool_] = rows[:-1, LOGICAL] + rows[:-1, LENGTH] == rows[1:, LOGICAL]
    return adjoins


def same(expected: ExtentMap, found: ExtentMap, span: ByteRange) -> bool:
    """Whether two maps are equal within the span, however their extents are split."""
    a, b = clip(expected, span), clip(found, span)
    return np.array_equal(a, b) or np.array_equal(normalise(a), normalise(b))


def first_difference(expected: ExtentMap, found: ExtentMap, span: ByteRange) -> Difference | None:
    """The first difference of two maps within the span; None when they are equal there."""
    a, b = clip(expected, span), clip(found, span)
    if np.array_equal(a, b):
        return None
    a, b = normalise(a), normalise(b)
    common = min(len(a), len(b))
    differing = np.flatnonzero(a[:common].ravel() != b[:common].ravel())
    at = int(differing[0]) // a.shape[1] if len(differing) else common
    if at == len(a) == len(b):
        return None
    offset = _where_rows_part(a[at : at + 1], b[at : at + 1])
    return Difference(offset, _describe(a, offset), _describe(b, offset))


def _where_rows_part(a: ExtentMap, b: ExtentMap) -> int:
    """The offset of the first difference of two maps that have at most one row each and are not
    equal."""
    if not len(a) or not len(b):
        return int((a if len(a) else b)[0, LOGICAL])
    if (a[0, :LENGTH] == b[0, :LENGTH]).all() and a[0, FLAGS] == b[0, FLAGS]:
        return int(a[0, LOGICAL] + min(a[0, LENGTH], b[0, LENGTH]))
    return int(min(a[0, LOGICAL], b[0, LOGICAL]))


def _describe(map: ExtentMap, offset: int) -> str:
    """What a map has at a byte of the file, and for how many bytes from there, as text."""
    at = bisect_right(map[:, LOGICAL], offset) - 1
    if at < 0 or int(map[at, LOGICAL] + map[at, LENGTH]) <= offset:
        return "a hole"
    row = map[at].copy()
    _cut_head(row, offset)
    physical, length, flags = (int(value) for value in row[PHYSICAL:])
    nowhere = flags & _PLACELESS and not physical
    place = "no place" if nowhere else f"device byte {physical}"
    names = f" ({', '.join(flag_names(flags))})" if flags else ""
    return f"{length} bytes at {place}{names}"


def uncovered(map: ExtentMap, span: ByteRange) -> list[ByteRange]:
    """The holes of the span, in order."""
    return _ranges(*_gaps(clip(map, span), span))


def _gaps(part: ExtentMap, span: ByteRange) -> tuple[Column, Column]:
    """Starts and lengths of the holes of the map `part`, which is clipped to the span."""
    edges = np.array([span.offset, span.end], dtype=np.uint64)
    starts = np.concatenate((edges[:1], part[:, LOGICAL] + part[:, LENGTH]))
    lengths = np.concatenate((part[:, LOGICAL], edges[1:])) - starts
    gap = lengths > 0
    return starts[gap], lengths[gap]


def _ranges(starts: Column, lengths: Column) -> list[ByteRange]:
    return [*starmap(ByteRange, zip(starts.tolist(), lengths.tolist(), strict=True))]


def unsuitable(map: ExtentMap, span: ByteRange) -> list[Unsuitable]:
    """The stretches that keep the span from being sealed, in order of offset. Adjoining ones with
    the same reason are joined; an extent with several reasons has the first in _UNSUITABLE."""
    part = clip(map, span)
    codes = _codes(part)
    bad = codes != _FINE
    hole_starts, hole_lengths = _gaps(part, span)
    starts, lengths, stretch_codes = _stretches(part[bad], codes[bad])
    starts, lengths = np.append(starts, hole_starts), np.append(lengths, hole_lengths)
    codes = np.append(stretch_codes, np.full(len(hole_starts), _HOLE, np.uint8))
    order = np.argsort(starts, kind="stable")
    ranges = _ranges(starts[order], lengths[order])
    rows = [_UNSUITABLE[code] for code in codes[order].tolist()]
    return [
        Unsuitable(stretch, reason, advice)
        for stretch, (_, reason, advice) in zip(ranges, rows, strict=True)
    ]


def suitable(map: ExtentMap, span: ByteRange) -> ExtentMap:
    """The extents of the span that can be sealed, as a new (m, 4) array."""
    rows = clip(map, span)
    fit: ExtentMap = rows[_codes(rows) == _FINE]
    return fit


def spans(rows: ExtentMap) -> list[ByteRange]:
    """The ranges that the rows of a map cover, in order; adjoining ones are joined."""
    found: list[ByteRange] = []
    for logical, _, length, _ in rows.tolist():
        if found and found[-1].end == logical:
            found[-1] = ByteRange(found[-1].offset, found[-1].length + length)
        else:
            found.append(ByteRange(logical, length))
    return found


def _codes(rows: ExtentMap) -> NDArray[np.uint8]:
    """For every row, the index of the first entry of _UNSUITABLE that it matches, or _FINE."""
    flags = rows[:, FLAGS]
    codes = np.full(len(rows), _FINE, np.uint8)
    if not np.bitwise_or.reduce(flags, initial=np.uint64(0)) & np.uint64(~_PASSING & 0xFFFFFFFF):
        return codes
    for code, (mask, _, _) in reversed([*enumerate(_UNSUITABLE)]):
        codes[(flags & np.uint64(mask)) != 0] = code
    return codes


def _stretches(
    rows: ExtentMap, codes: NDArray[np.uint8]
) -> tuple[Column, Column, NDArray[np.uint8]]:
    """Starts, lengths and codes of the rows, where adjoining rows with equal codes are joined."""
    if not len(rows):
        return rows[:, LOGICAL], rows[:, LENGTH], codes
    begins, ends = _groups(_adjoins(rows) & (codes[:-1] == codes[1:]))
    starts = rows[begins, LOGICAL]
    return starts, rows[ends, LOGICAL] + rows[ends, LENGTH] - starts, codes[begins]


def fragmentation(map: ExtentMap) -> Fragmentation:
    """The statistics of a map; all 0 for an empty one."""
    if not len(map):
        return Fragmentation(0, 0, 0, 0, 0, 0.0)
    next_to = _adjoins(map) & (map[:-1, PHYSICAL] + map[:-1, LENGTH] == map[1:, PHYSICAL])
    starts = np.flatnonzero(np.concatenate(([True], ~next_to)))
    runs = np.add.reduceat(map[:, LENGTH], starts)
    mapped = int(runs.sum())
    return Fragmentation(
        extents=len(map),
        contiguous=int(next_to.sum()),
        runs=len(runs),
        mapped=mapped,
        largest=int(runs.max()),
        mean=mapped / len(runs),
    )
