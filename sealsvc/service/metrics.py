"""Metrics: counters and latency histograms, filled from events and by timing requests. Their size
is bounded, because names and labels come from the program, never from a client."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sealsvc.core import states
from sealsvc.core.model import State
from sealsvc.protocol.admin import Histogram
from sealsvc.protocol.events import Event
from sealsvc.runtime import clock

# Seconds, each about 2.5 times the one before: from a grant on an armed file up to a long recall.
BOUNDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 60.0, 150.0, 600.0),
)
_OVER = frozenset(set(State) - states.LIVE)
_MOST_RECALLS = 200_000  # recalls under way whose start is kept


class Distribution:
    """A histogram of seconds. The last of `counts` is for values above all BOUNDS."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.sum += seconds

    def told(self) -> Histogram:
        return Histogram(bounds=list(BOUNDS), counts=list(self.counts), sum=self.sum)


class Metrics:
    """The counters, by name and label, and the latencies, by name."""

    def __init__(self) -> None:
        self.counters: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.latencies = {
            name: Distribution() for name in ("grant", "return", "recall", "conflict", "loop_lag")
        }
        self._recalled: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the duration of the context to the latency `name`, unless it raises: a refusal would
        look like a fast success."""
        began = clock.now()
        yield
        self.latencies[name].add(clock.now() - began)

    def hear(self, event: Event) -> None:
        """Count an event. Called with each."""
        data = event.data
        self.counters["events"][event.name] += 1
        match event.name:
            case "conflict":
                self.counters["conflicts"][str(data["verdict"])] += data.get("repeated", 1)
            case "conflict-ended":
                self.counters["conflicts_ended"]["refused" if data["result"] else "passed"] += 1
                self.latencies["conflict"].add(data["waited"])
            case "refused":
                self.counters["refusals"][data["code"]] += 1
            case "recall" if event.seal and not data["merged"]:
                self._recalled[event.seal] = clock.now()
                if len(self._recalled) > _MOST_RECALLS:
                    self._recalled.popitem(last=False)
            case "state":
                self._moved(event.seal or "", data)

    def _moved(self, seal: str, data: dict[str, Any]) -> None:
        self.counters["transitions"][str(data["to"])] += 1
        if data["to"] in _OVER and (began := self._recalled.pop(seal, None)) is not None:
            self.latencies["recall"].add(clock.now() - began)
