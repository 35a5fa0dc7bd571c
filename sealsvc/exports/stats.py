"""The page of counters of an export: struct export_stats of native/exports/core/stats.h."""

from __future__ import annotations

import mmap
import struct
import time
from pathlib import Path

import msgspec

OPS = ("read", "write", "zero", "discard", "flush", "compare")
STATES = ("starting", "serving", "paused", "ended")
SERVES = ("serving", "paused")
BUCKETS = 40
_MAGIC = 0x315441545350584C
_HEAD = struct.Struct("=QIIII QQQQ 32s 128s")
_HISTOGRAM = struct.Struct(f"={3 + BUCKETS}Q")
_PAUSES = _HEAD.size + 8 * len(OPS) + len(OPS) * _HISTOGRAM.size
_REFUSALS = _PAUSES + _HISTOGRAM.size
SIZE = _REFUSALS + 8


class RequestTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Nanoseconds. Bucket n counts what took less than 2^n, and not less than 2^(n-1)."""

    count: int
    total: int
    longest: int
    buckets: list[int]

    def quantile(self, share: float) -> int:
        """An upper bound of that share (0 to 1) of all, in ns; 0 when there are none."""
        left = share * self.count
        for n, count in enumerate(self.buckets):
            left -= count
            if count and left <= 0:
                return min(1 << n, self.longest)
        return self.longest if self.count else 0


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """`paused_for` is seconds (0: it is not paused), `why` says what it waits for. `refusals` are
    tries that the keeper of the seals refused, and that were made again."""

    state: str
    pid: int
    in_flight: int
    device_size: int
    seals: int
    errors: int
    paused_for: float
    seal: str
    why: str
    bytes: dict[str, int]
    latency: dict[str, RequestTimes]
    pauses: RequestTimes
    refusals: int


def read_stats(path: Path) -> Stats | None:
    """None: there are none yet."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < SIZE:
        return None
    head = _HEAD.unpack_from(data)
    magic, size, state, pid, in_flight, device_size, seals, errors, paused_at, seal, why = head
    if magic != _MAGIC or size != SIZE:
        return None
    amounts = struct.unpack_from(f"={len(OPS)}Q", data, _HEAD.size)
    first = _HEAD.size + 8 * len(OPS)
    histograms = [_histogram(data, first + n * _HISTOGRAM.size) for n in range(len(OPS) + 1)]
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return Stats(
        state=STATES[state],
        pid=pid,
        in_flight=in_flight,
        device_size=device_size,
        seals=seals,
        errors=errors,
        paused_for=(now - paused_at) / 1e9 if paused_at else 0.0,
        seal=_text(seal),
        why=_text(why),
        bytes=dict(zip(OPS, amounts, strict=True)),
        latency=dict(zip(OPS, histograms, strict=False)),
        pauses=histograms[-1],
        refusals=struct.unpack_from("=Q", data, _REFUSALS)[0],
    )


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _histogram(data: bytes, offset: int) -> RequestTimes:
    count, total, longest, *buckets = _HISTOGRAM.unpack_from(data, offset)
    return RequestTimes(count=count, total=total, longest=longest, buckets=buckets)


class OwnStats:
    """The page as a process writes it that serves no requests itself, but pauses."""

    def __init__(self, path: Path, pid: int, device_size: int) -> None:
        with path.open("w+b") as file:
            file.truncate(SIZE)
            self._page = mmap.mmap(file.fileno(), SIZE)
        self._state, self._pid, self._size = 0, pid, device_size
        self._seals, self._paused_at, self._seal, self._why = 0, 0, "", ""
        self._pauses = [0] * (3 + BUCKETS)
        self._write()

    def sealed(self, seal: str) -> None:
        self._seals += 1
        self._seal = seal
        self._write()

    def serving(self) -> None:
        if self._paused_at:
            self._count(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._paused_at)
        self._state, self._paused_at, self._why = 1, 0, ""
        self._write()

    def paused(self, why: str) -> None:
        self._state, self._why = 2, why
        self._paused_at = self._paused_at or time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._write()

    def ended(self) -> None:
        self._state, self._seal = 3, ""
        self._write()

    def _count(self, took: int) -> None:
        self._pauses[0] += 1
        self._pauses[1] += took
        self._pauses[2] = max(self._pauses[2], took)
        self._pauses[3 + min(took.bit_length(), BUCKETS - 1)] += 1

    def _write(self) -> None:
        _HEAD.pack_into(
            self._page, 0, _MAGIC, SIZE, self._state, self._pid, 0, self._size, self._seals, 0,
            self._paused_at, self._seal.encode()[:31], self._why.encode()[:127],
        )  # fmt: skip
        _HISTOGRAM.pack_into(self._page, _PAUSES, *self._pauses)
