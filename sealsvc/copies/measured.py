"""What is remembered of pairs of file systems: rates of strategies, and offloads that lied."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sealsvc.copies.strategies.interface import Strategy

_FRESH = 7 * 86400.0  # seconds; what was measured earlier is measured again


class Rate(msgspec.Struct, frozen=True):
    """Bytes per second, flush included; `at` in seconds of the Unix epoch."""

    rate: float
    at: float


class Trust(msgspec.Struct, frozen=True):
    """The self-test of an offload: `verified`, or `lied` with the first byte that differed."""

    outcome: str
    at: float
    bytes: int
    note: str = ""


class Pair(msgspec.Struct):
    rates: dict[str, Rate] = msgspec.field(default_factory=dict)
    trust: dict[str, Trust] = msgspec.field(default_factory=dict)


class Measured:
    """Kept in `path` (JSON, replaced as a whole), or in memory alone. A file that cannot be read
    counts as empty: everything is measured, and every offload tested, again."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.pairs: dict[str, Pair] = _read(path) if path else {}

    def rate(self, pair: str, strategy: str) -> float | None:
        found = self.pairs.get(pair, Pair()).rates.get(strategy)
        return found.rate if found and time.time() - found.at < _FRESH else None

    def ranked(self, pair: str, strategies: Sequence[Strategy]) -> list[Strategy]:
        """Instant ones first; then the fastest, if all were measured; `zero` stays the last."""
        timed = [s for s in strategies if not s.instant]
        rates = {s.name: self.rate(pair, s.name) for s in timed}
        if all(rates.values()):
            timed.sort(key=lambda s: -(rates[s.name] or 0.0))
        else:
            known = [s for s in timed if rates[s.name]]
            # The fastest of those known, before what is not known, before the slower ones.
            best = max(known, key=lambda s: rates[s.name] or 0.0, default=None)
            timed.sort(key=lambda s: (s is not best, s in known))
        instant = [s for s in strategies if s.instant]
        zero = [s for s in instant if s.name == "zero"]
        return [*(s for s in instant if s.name != "zero"), *timed, *zero]

    def took(self, pair: str, strategy: str, size: int, seconds: float) -> None:
        """One measurement; what is remembered is halfway between it and what was before."""
        rate = size / max(seconds, 1e-9)
        if before := self.rate(pair, strategy):
            rate = (rate + before) / 2
        self._pair(pair).rates[strategy] = Rate(rate, time.time())

    def trust(self, pair: str, strategy: str) -> Trust | None:
        return self.pairs.get(pair, Pair()).trust.get(strategy)

    def quirk(self, pair: str, strategy: str) -> str:
        """Why the strategy must not be used here again; empty: nothing is known against it."""
        found = self.trust(pair, strategy)
        if found is None or found.outcome != "lied":
            return ""
        return f"it failed its self-test on this pair of devices: {found.note}"

    def tested(self, pair: str, strategy: str, size: int, lie: str) -> None:
        outcome = "lied" if lie else "verified"
        self._pair(pair).trust[strategy] = Trust(outcome, time.time(), size, lie)

    def save(self) -> None:
        """Raises OSError. What other copies found out meanwhile on other pairs stays."""
        if self._path is None:
            return
        self.pairs = _read(self._path) | self.pairs
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        new.write_bytes(msgspec.json.encode(self.pairs))
        new.replace(self._path)

    def _pair(self, pair: str) -> Pair:
        return self.pairs.setdefault(pair, Pair())


def _read(path: Path) -> dict[str, Pair]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Pair])
    except (OSError, msgspec.MsgspecError):
        return {}
