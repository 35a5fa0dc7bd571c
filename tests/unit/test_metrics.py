"""What is counted and timed."""

from __future__ import annotations

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import MeasuresReport
from sealsvc.protocol.events import Event
from sealsvc.service.metrics import BOUNDS, Metrics


def heard(name: str, seal: str | None = None, **data: object) -> Event:
    return Event(seq=1, time=0.0, name=name, seal=seal, data=dict(data))


def test_what_is_heard_is_counted() -> None:
    taken = Metrics()
    taken.hear(heard("conflict", verdict="held"))
    taken.hear(heard("conflict-ended", result=0, waited=0.3))
    taken.hear(heard("refused", code="denied"))
    taken.hear(heard("recall", "a", merged=False))
    taken.hear(heard("state", "a", to="returned"))
    taken.hear(heard("state", "b", to="returned"))
    assert taken.counters["conflicts"] == {"held": 1}
    assert taken.counters["conflicts_ended"] == {"passed": 1}
    assert taken.counters["refusals"] == {"denied": 1}
    assert taken.counters["transitions"] == {"returned": 2}
    told = taken.latencies["conflict"].told()
    assert told.counts[told.bounds.index(0.5)] == 1
    assert told.sum == 0.3
    assert sum(taken.latencies["recall"].counts) == 1, "b was not recalled"


def test_what_is_refused_is_not_timed() -> None:
    taken = Metrics()
    with pytest.raises(Refusal), taken.timed("grant"):
        raise Refusal("denied", "no")
    with taken.timed("grant"):
        pass
    assert sum(taken.latencies["grant"].counts) == 1
    assert list(BOUNDS) == sorted(BOUNDS)
    assert MeasuresReport(run="", counters={}, latencies={}, gauges={})
