"""The plan of a copy: which bytes are data, and which strategy is to copy which of them."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from sealsvc.copies.calls import Span
from sealsvc.copies.ends import End, Ends
from sealsvc.copies.measured import Measured
from sealsvc.copies.strategies import ALL
from sealsvc.copies.strategies.interface import Strategy
from sealsvc.core.errors import Refusal
from sealsvc.core.extents import EXTENT_UNWRITTEN, FLAGS, LENGTH, LOGICAL, clip
from sealsvc.core.model import ByteRange

PROBE = 4 << 20  # bytes that a strategy is measured on, at least
_PROBE_MOST = 32 << 20
_PROBED = 4  # of so many bytes, one is copied to measure: the rest by what was found
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Options:
    """What is to be copied, and how; offsets, lengths in bytes.

    `length` None: to the end of the source. `to`: where in the destination (None: at the same
    offset). `whole`: the destination is made as long as the source. `throttle`: bytes per second.
    `only`: names of strategies, used without measuring (`plain` and `zero` are the last resort,
    unless `strict`). `in_place`: the destination's map stays. `done`: ranges of the source that an
    earlier copy did."""

    offset: int = 0
    length: int | None = None
    to: int | None = None
    whole: bool = False
    throttle: int | None = None
    durable: bool = True
    verify: bool = False
    in_place: bool = False
    only: tuple[str, ...] = ()
    strict: bool = False
    done: tuple[ByteRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """A span with the strategies that may copy it, the predicted one first. `probe`: it is copied
    by the first to measure it. `not_taken`: why others are not used here, by name."""

    span: Span
    hole: bool
    strategies: tuple[str, ...]
    probe: bool = False
    not_taken: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """`refused` says why a strategy is not used between these files at all. Closed by `run`, or by
    its owner."""

    ends: Ends
    options: Options
    span: Span
    pieces: list[Piece]
    strategies: dict[str, Strategy]
    refused: dict[str, str]

    def close(self) -> None:
        for strategy in self.strategies.values():
            strategy.close()


def make_plan(ends: Ends, options: Options, measured: Measured | None = None) -> Plan:
    """Raises Refusal `bad-request` for ranges that cannot be."""
    measured = measured or Measured()
    if options.in_place and not ends.destination.keeps_map:
        kept = replace(ends.destination, seals=("in-place",))
        ends = Ends(ends.source, kept)
    span = _span(ends, options)
    strategies, refused = _usable(ends, options, measured)
    order = [*strategies.values()]
    if not options.only:
        order = measured.ranked(ends.pair, order)
    pieces: list[Piece] = []
    try:
        for stretch, hole in _stretches(ends, span, options.done):
            pieces += _assigned(ends, stretch, hole, order)
        pieces = _merged(pieces, strategies)
        if not options.only:
            pieces = _probes(ends, pieces, strategies, measured)
        # Each change between what uses the page cache and what does not costs a flush.
        pieces.sort(key=lambda piece: not strategies[piece.strategies[0]].offload)
    except BaseException:
        for strategy in strategies.values():
            strategy.close()
        raise
    return Plan(ends, options, span, pieces, strategies, refused)


def _span(ends: Ends, options: Options) -> Span:
    size, to = ends.source.size, options.offset if options.to is None else options.to
    end = size if options.length is None else min(size, options.offset + options.length)
    span = Span(options.offset, to, max(0, end - options.offset))
    if ends.same_file and abs(span.source - span.destination) < span.length:
        raise Refusal(
            "bad-request",
            "the ranges overlap in one file: copy the parts apart, or through another file",
            {"errno": errno.EINVAL},
        )
    if span.destination_end > 2**62:
        raise Refusal("bad-request", "the destination would end beyond 2^62 bytes")
    return span


def _usable(
    ends: Ends, options: Options, measured: Measured
) -> tuple[dict[str, Strategy], dict[str, str]]:
    usable: dict[str, Strategy] = {}
    refused: dict[str, str] = {}
    last_resort = () if options.strict else ("plain", "zero")
    for kind in ALL:
        if options.only and kind.name not in (*options.only, *last_resort):
            refused[kind.name] = "not asked for"
            continue
        strategy = kind()
        reason = measured.quirk(ends.pair, kind.name) or strategy.refusal(ends)
        if reason:
            strategy.close()
            refused[kind.name] = reason
        else:
            usable[kind.name] = strategy
    return usable, refused


def _stretches(ends: Ends, span: Span, done: Sequence[ByteRange]) -> Iterator[tuple[Span, bool]]:
    """The span in parts that lie in one extent of each file, or in a hole of the source (true),
    without what is done."""
    wanted = ByteRange(span.source, span.length).without_all(done) if span.length else []
    shift = span.destination - span.source
    for part in wanted:
        edges = {part.offset, part.end}
        for start, end in _edges(ends.source, part):
            edges |= {start, end}
        there = ByteRange(part.offset + shift, part.length)
        for start, end in _edges(ends.destination, there):
            edges |= {start - shift, end - shift}
        ordered = sorted(edge for edge in edges if part.offset <= edge <= part.end)
        data = _data_starts(ends.source, part)
        for start, end in itertools.pairwise(ordered):
            yield Span(start, start + shift, end - start), not _covered(data, start)


def _edges(end: End, part: ByteRange) -> Iterator[tuple[int, int]]:
    for row in clip(end.map, part).tolist():
        yield row[LOGICAL], row[LOGICAL] + row[LENGTH]


def _data_starts(end: End, part: ByteRange) -> list[tuple[int, int]]:
    rows = clip(end.map, part).tolist()
    return [
        (row[LOGICAL], row[LOGICAL] + row[LENGTH])
        for row in rows
        if not row[FLAGS] & EXTENT_UNWRITTEN
    ]


def _covered(data: list[tuple[int, int]], offset: int) -> bool:
    """Offsets are asked for in ascending order: what lies before is dropped."""
    while data and data[0][1] <= offset:
        data.pop(0)
    return bool(data) and data[0][0] <= offset


def _assigned(
    ends: Ends,
    span: Span,
    hole: bool,
    order: list[Strategy],
    not_taken: dict[str, str] | None = None,
) -> list[Piece]:
    """The span, its edges to later strategies where the first that fits takes only the middle."""
    why = dict(not_taken or {})
    for at, strategy in enumerate(order):
        if (hole and not strategy.holes) or (strategy.name == "zero" and not hole):
            continue
        core = strategy.fits(ends, span)
        if core is None:
            why[strategy.name] = "alignment, or no written blocks in the destination"
            continue
        names = tuple(
            s.name
            for s in order[at:]
            if (s.holes if hole else s.name != "zero") and s.fits(ends, core) == core
        )
        head, end = core.source - span.source, core.source_end - span.source
        edge = why | {strategy.name: "an unaligned edge"}
        return [
            *(_assigned(ends, span.part(0, head), hole, order[at + 1 :], edge) if head else []),
            Piece(core, hole, names, not_taken=why),
            *(
                _assigned(ends, span.part(end, span.length), hole, order[at + 1 :], edge)
                if end < span.length
                else []
            ),
        ]
    raise Refusal("bad-request", f"no strategy that was asked for can copy byte {span.source}")


def _merged(pieces: list[Piece], strategies: dict[str, Strategy]) -> list[Piece]:
    """Neighbours that one strategy copies alike as one, but for those which need one extent."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        first = strategies[piece.strategies[0]]
        if (
            last is not None
            and last.strategies[0] == first.name
            and not first.offload
            and (last.hole == piece.hole or (first.holes and first.name != "zero"))
            and last.span.source_end == piece.span.source
        ):
            span = replace(last.span, length=last.span.length + piece.span.length)
            common = tuple(n for n in last.strategies if n in piece.strategies)
            hole = last.hole and piece.hole
            if not hole and common and "plain" not in common and "plain" in strategies:
                common = (*common, "plain")
            merged[-1] = Piece(span, hole, common, not_taken=last.not_taken | piece.not_taken)
        else:
            merged.append(piece)
    return merged


def _probes(
    ends: Ends, pieces: list[Piece], strategies: dict[str, Strategy], measured: Measured
) -> list[Piece]:
    """Slices of the first long piece, ROUNDS for each strategy that was not measured on this pair,
    in alternation: what comes first finds cold caches."""
    for at, piece in enumerate(pieces):
        candidates = [n for n in piece.strategies if not strategies[n].instant]
        unknown = [n for n in candidates if measured.rate(ends.pair, n) is None]
        needed = PROBE * (ROUNDS * len(unknown) + 2)
        if piece.hole or strategies[piece.strategies[0]].instant or len(candidates) < 2:
            continue
        if not unknown or piece.span.length < needed:
            continue
        size = _probe_size(piece.span.length, ROUNDS * len(unknown))
        slices = []
        for i, name in enumerate(unknown * ROUNDS):
            others = tuple(n for n in piece.strategies if n != name)
            part = piece.span.part(i * size, (i + 1) * size)
            slices.append(Piece(part, False, (name, *others), True, piece.not_taken))
        rest = piece.span.part(len(slices) * size, piece.span.length)
        return [*pieces[:at], *slices, replace(piece, span=rest), *pieces[at + 1 :]]
    return pieces


def _probe_size(length: int, slices: int) -> int:
    """The longer the slice, the less it is about how a strategy begins, and the cost of a flush."""
    share = length // (_PROBED * slices) & -PROBE
    return max(PROBE, min(_PROBE_MOST, share))
