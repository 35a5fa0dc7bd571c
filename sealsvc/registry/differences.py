"""How one map of a range differs from another, stretch by stretch. Pure: no I/O."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sealsvc.core import extents
from sealsvc.core.extents import FLAGS, LENGTH, LOGICAL, PHYSICAL, ExtentMap
from sealsvc.core.model import ByteRange
from sealsvc.protocol.history import Change, MapDifference

# Their `physical` does not move along with `logical`.
_PLACELESS = (
    extents.EXTENT_UNKNOWN
    | extents.EXTENT_DELALLOC
    | extents.EXTENT_ENCODED
    | extents.EXTENT_INLINE
    | extents.EXTENT_TAIL
)


def between(
    seal: str, recorded: ExtentMap, present: ExtentMap, span: ByteRange, limit: int
) -> MapDifference:
    """The stretches of `span` that are not as recorded; the first `limit` of them are told."""
    a = extents.normalise(extents.clip(recorded, span))
    b = extents.normalise(extents.clip(present, span))
    found = _stretches(a, b, span)
    return MapDifference(
        seal=seal,
        range=span,
        changes=[_change(a, b, stretch) for stretch in found[:limit]],
        total=len(found),
        changed=sum(stretch.length for stretch in found),
    )


def _change(a: ExtentMap, b: ExtentMap, stretch: ByteRange) -> Change:
    difference = extents.first_difference(a, b, stretch)
    assert difference is not None
    return Change(range=stretch, expected=difference.expected, found=difference.found)


def _stretches(a: ExtentMap, b: ExtentMap, span: ByteRange) -> list[ByteRange]:
    """Both maps are cut wherever either has an edge; of the pieces those that differ, joined."""
    edges = np.unique(
        np.concatenate([_edges(a), _edges(b), np.array([span.offset, span.end], np.uint64)])
    )
    starts, lengths = edges[:-1], np.diff(edges)
    differs = (_places(a, starts) != _places(b, starts)).any(axis=1)
    joined: list[ByteRange] = []
    for start, length in zip(starts[differs].tolist(), lengths[differs].tolist(), strict=True):
        if joined and joined[-1].end == start:
            joined[-1] = ByteRange(joined[-1].offset, joined[-1].length + length)
        else:
            joined.append(ByteRange(start, length))
    return joined


def _edges(map: ExtentMap) -> NDArray[np.uint64]:
    return np.concatenate([map[:, LOGICAL], map[:, LOGICAL] + map[:, LENGTH]])


def _places(map: ExtentMap, starts: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Where each piece lies: whether anywhere, device byte, flags."""
    places = np.zeros((len(starts), 3), np.uint64)
    row = np.searchsorted(map[:, LOGICAL], starts, side="right") - 1
    inside = np.flatnonzero(row >= 0)
    inside = inside[starts[inside] < (map[:, LOGICAL] + map[:, LENGTH])[row[inside]]]
    rows = map[row[inside]]
    step = starts[inside] - rows[:, LOGICAL]
    step[(rows[:, FLAGS] & np.uint64(_PLACELESS)) != 0] = 0
    places[inside] = np.stack(
        [np.ones_like(step), rows[:, PHYSICAL] + step, rows[:, FLAGS]], axis=1
    )
    return places
