"""Carrying out a plan: from byte to byte, from strategy to strategy."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sealsvc.copies import calls
from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.measured import Measured
from sealsvc.copies.page_cache import drop
from sealsvc.copies.plan import Piece, Plan
from sealsvc.copies.result import Fallback, Result, Row, token_of
from sealsvc.copies.strategies.interface import Strategy
from sealsvc.copies.throttle import Throttle
from sealsvc.core.model import ByteRange
from sealsvc.linux import native

# A strategy that says so cannot do it here; another may.
_TO_THE_NEXT = {
    errno.EXDEV,
    errno.EINVAL,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.ENOTTY,
    errno.ETXTBSY,
    errno.EOVERFLOW,
}
_SELF_TEST = 16 << 20  # bytes
LEARNT = 32 << 20  # bytes of a piece whose rate is remembered

Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class _Stopped(Exception):
    """`lost`: what was written is not known to be on the device, nor in the page cache."""

    error: int
    at: int | None
    text: str
    lost: bool = False


def run(
    plan: Plan,
    measured: Measured | None = None,
    progress: Progress = lambda *_: None,
    cancel: threading.Event | None = None,
) -> Result:
    """Copy as planned, and close the plan. `progress` is called with the bytes done, all bytes, and
    the strategy. `cancel` stops it between two calls. Errors are in the result."""
    try:
        return _Run(plan, measured or Measured(), progress, cancel or threading.Event()).result()
    finally:
        plan.close()


class _Run:
    def __init__(
        self, plan: Plan, measured: Measured, progress: Progress, cancel: threading.Event
    ) -> None:
        self._plan, self._measured = plan, measured
        self._progress, self._cancel = progress, cancel
        self._ends, self._throttle = plan.ends, Throttle(plan.options.throttle)
        self._rows: list[Row] = []
        self._fell_back: list[Fallback] = []
        self._before = sum(part.length for part in plan.options.done)
        self._done = self._before
        # The destination may have dirty, or stale, pages in the page cache.
        self._cached = True

    def result(self) -> Result:
        began = time.monotonic()
        stopped: _Stopped | None = None
        durable = verified = False
        try:
            for piece in self._plan.pieces:
                self._copy(piece)
                if self._cancel.is_set():
                    break
            if not self._cancel.is_set():
                self._settle_size()
            durable = self._flush()
            if self._plan.options.verify and not self._cancel.is_set():
                verified = self._verify()
        except (_Stopped, OSError) as error:
            stopped = error if isinstance(error, _Stopped) else _stop(error)
            durable = not stopped.lost and self._saved(stopped)
        if stopped and stopped.lost:
            self._rows, self._done = [], self._before
        return self._told(stopped, durable, verified, time.monotonic() - began)

    def _told(
        self, stopped: _Stopped | None, durable: bool, verified: bool, seconds: float
    ) -> Result:
        span, changed = self._plan.span, self._source_changed()
        shift = span.destination - span.source
        token = token_of(self._ends, shift, self._ranges(), flushed=durable)
        return Result(
            requested=span.length,
            done=self._done,
            rows=_joined(self._rows),
            fell_back=self._fell_back,
            durable=durable,
            source_changed=changed,
            cancelled=self._cancel.is_set() and self._done < span.length,
            seconds=seconds,
            token=token.text(),
            error=stopped.text if stopped else "",
            errno=stopped.error if stopped else 0,
            error_at=stopped.at if stopped else None,
            verified=verified,
        )

    # Pieces

    def _copy(self, piece: Piece) -> None:
        order = planned = self._order(piece)
        rest = piece.span
        began = time.monotonic()
        while rest.length and not self._cancel.is_set():
            strategy = order[0]
            part = rest.part(0, self._throttle.most(min(rest.length, self._most(strategy))))
            self._throttle.wait(part.length, self._cancel)
            copied = self._call(strategy, part)
            if copied.bytes:
                self._count(part.part(0, copied.bytes), strategy)
                rest = rest.part(copied.bytes, rest.length)
            if copied.error or not copied.bytes:  # short alone: the same goes on from there
                order = self._next(order, rest, copied)
        if not rest.length and order == planned and self._is_measured(piece, order[0]):
            there = self._ends.destination.fd
            calls.write_back(there, piece.span.destination, piece.span.length)
            seconds = time.monotonic() - began
            self._measured.took(self._ends.pair, order[0].name, piece.span.length, seconds)

    def _is_measured(self, piece: Piece, strategy: Strategy) -> bool:
        """A probe, or so much data that its flush, which is due anyway, is worth waiting for here:
        what a short probe said wrongly is corrected by what it led to."""
        if piece.probe:
            return True
        options = self._plan.options
        return (
            piece.span.length >= LEARNT
            and options.durable
            and options.throttle is None
            and not (options.only or strategy.instant or piece.hole)
        )

    def _order(self, piece: Piece) -> list[Strategy]:
        strategies = [self._plan.strategies[name] for name in piece.strategies]
        if piece.probe or strategies[0].instant or self._plan.options.only:
            return strategies
        return self._measured.ranked(self._ends.pair, strategies)

    def _most(self, strategy: Strategy) -> int:
        untested = strategy.offload and not self._measured.trust(self._ends.pair, strategy.name)
        return min(strategy.most, _SELF_TEST) if untested else strategy.most

    def _next(self, order: list[Strategy], rest: Span, copied: Copied) -> list[Strategy]:
        """Those that may go on from the byte where the first gave up. Raises _Stopped."""
        failed, error = order[0], copied.error
        if not error and os.fstat(self._ends.source.fd).st_size <= rest.source:
            raise _Stopped(errno.ESTALE, rest.source, "the source became shorter while it was read")
        reason = os.strerror(error) if error else "it returned 0 before the end of the file"
        able = [s for s in order[1:] if s.fits(self._ends, rest) == rest]
        passed_on = not error or failed.offload or error in _TO_THE_NEXT
        if not able or not passed_on:
            raise _Stopped(
                error or errno.EIO, rest.source, f"{failed.name}, byte {rest.source}: {reason}"
            )
        self._fell_back.append(Fallback(rest.source, failed.name, reason))
        return able

    def _call(self, strategy: Strategy, part: Span) -> Copied:
        if not strategy.offload:
            self._cached = True
            return strategy.copy(self._ends, part)
        there = self._ends.destination.fd
        if self._cached:
            self._touch(part)
            self._sync()
            drop(there)
            self._cached = False
        copied = strategy.copy(self._ends, part)
        drop(there)
        if not copied.bytes:
            return copied
        return self._checked(strategy, part.part(0, copied.bytes), copied)

    def _touch(self, part: Span) -> None:
        """What goes around the file system leaves its times, and set-user-ID bits, as they were: a
        byte written as it is changes them as any write does."""
        there = self._ends.destination.fd
        os.pwrite(there, os.pread(there, 1, part.destination), part.destination)

    def _checked(self, strategy: Strategy, part: Span, copied: Copied) -> Copied:
        """Compared through the file: at the first use on this pair, and where pages stayed in the
        page cache."""
        source, there = self._ends.source.fd, self._ends.destination.fd
        pair = self._ends.pair
        tested = self._measured.trust(pair, strategy.name) is not None
        stayed = native.cached_pages(there, part.destination, part.length)
        if tested and stayed == 0:
            return copied
        equal = calls.equal_bytes(source, there, part)
        if equal == part.length:
            if not tested:
                self._measured.tested(pair, strategy.name, part.length, "")
            return copied
        lie = f"byte {part.destination + equal} differed after it reported success"
        if stayed == 0 or not tested:
            self._measured.tested(pair, strategy.name, part.length, lie)
        return Copied(0, errno.EREMOTEIO)

    def _count(self, span: Span, strategy: Strategy) -> None:
        self._done += span.length
        row = Row(span.source, span.destination, span.length, strategy.name)
        self._rows[-1:] = _joined([*self._rows[-1:], row])
        self._progress(self._done, self._plan.span.length, strategy.name)

    # The end

    def _settle_size(self) -> None:
        """Holes at the end extend the file, too; a copy of the whole file ends where it does."""
        there, end = self._ends.destination.fd, self._plan.span.destination_end
        size = os.fstat(there).st_size
        if size < end or (self._plan.options.whole and size > end):
            os.ftruncate(there, end)

    def _flush(self) -> bool:
        if self._plan.options.durable:
            self._sync()
        return self._plan.options.durable

    def _sync(self) -> None:
        """After a failure the kernel keeps no page as dirty: what was written since the last
        success is nowhere, or on the device, and nobody can tell which."""
        try:
            os.fsync(self._ends.destination.fd)
            for name in {row.strategy for row in self._rows}:
                self._plan.strategies[name].flush()
        except OSError as error:
            text = f"fsync: {error.strerror}: nothing of the copy is known to be on the device"
            raise _Stopped(error.errno or errno.EIO, None, text, lost=True) from None

    def _saved(self, stopped: _Stopped) -> bool:
        """What was done before the failure, brought to the device."""
        try:
            return self._flush()
        except _Stopped as lost:
            stopped.lost, stopped.text = True, f"{stopped.text}; then {lost.text}"
            return False

    def _verify(self) -> bool:
        source, there = self._ends.source.fd, self._ends.destination.fd
        drop(there)
        equal = calls.equal_bytes(source, there, self._plan.span)
        if equal < self._plan.span.length:
            at = self._plan.span.source + equal
            raise _Stopped(errno.EIO, at, f"byte {at} of the source differs in the destination")
        return True

    def _source_changed(self) -> bool:
        before = self._ends.source
        if before.pinned or self._ends.same_file:
            return False
        # The copy began with fsync: a store through a mapping since has changed the ctime, too.
        try:
            now = os.fstat(before.fd)
        except OSError:  # as of an XFS that was shut down: what is not known is not promised
            return True
        return (now.st_size, now.st_ctime_ns) != (before.size, before.changed_ns)

    def _ranges(self) -> tuple[ByteRange, ...]:
        """What is done, joined."""
        parts = [*self._plan.options.done]
        parts += [ByteRange(row.source, row.length) for row in self._rows]
        joined: list[ByteRange] = []
        for part in sorted(parts, key=lambda part: part.offset):
            if joined and joined[-1].end >= part.offset:
                joined[-1] = joined[-1].hull(part)
            else:
                joined.append(part)
        return tuple(joined)


def _joined(rows: list[Row]) -> list[Row]:
    """In order of the source; offloads were carried out first."""
    joined: list[Row] = []
    for row in sorted(rows, key=lambda row: row.source):
        last = joined[-1] if joined else None
        if last and last.strategy == row.strategy and last.source + last.length == row.source:
            joined[-1] = Row(last.source, last.destination, last.length + row.length, row.strategy)
        else:
            joined.append(row)
    return joined


def _stop(error: OSError) -> _Stopped:
    return _Stopped(error.errno or errno.EIO, None, f"{error.filename or 'copy'}: {error.strerror}")
