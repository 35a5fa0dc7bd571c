"""What is counted of rings, as Prometheus reads it."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sealsvc.protocol.admin import Histogram, MeasuresReport
from sealsvc_api.metrics import _of_measures, rendered

_NOTHING = Histogram(bounds=[1.0], counts=[0, 0], sum=0.0)


def samples(
    counters: dict[str, dict[str, int]], rings: dict[str, float]
) -> dict[tuple[str, ...], float]:
    measures = MeasuresReport(
        run="5f3a91c2",
        counters=counters,
        latencies=dict.fromkeys(("grant", "return", "recall", "conflict"), _NOTHING),
        gauges={"queue": {}, "lapses": {}, "rings": rings},
    )
    text = rendered(_of_measures(measures)).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "_ring" in sample.name
    }


def test_rings_are_counted() -> None:
    found = samples(
        {
            "ring_commands": {"grant": 4, "return": 3},
            "ring_forwarded": {"": 2},
            "ring_troubles": {"broken": 1, "dropped": 5},
            "ring_bells": {"rung": 6, "spared": 7},
        },
        {"rings": 2, "attached": 1, "registrations": 3, "slots": 2048, "slots_used": 9},
    )
    assert found == {
        ("sealsvc_ring_commands_total", "grant"): 4,
        ("sealsvc_ring_commands_total", "return"): 3,
        ("sealsvc_ring_forwarded_total",): 2,
        ("sealsvc_ring_broken_total",): 1,
        ("sealsvc_ring_dropped_total",): 5,
        ("sealsvc_ring_bells_total", "rung"): 6,
        ("sealsvc_ring_bells_total", "spared"): 7,
        ("sealsvc_rings",): 2,
        ("sealsvc_rings_attached",): 1,
        ("sealsvc_ring_registrations",): 3,
        ("sealsvc_ring_slots",): 2048,
        ("sealsvc_ring_slots_used",): 9,
    }


def test_without_a_keeper_there_is_nothing_to_count() -> None:
    assert samples({}, {}) == {}
