"""/metrics: what Prometheus collects, in OpenMetrics. The service counts; this renders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from sealsvc.core.model import State
from sealsvc.protocol.admin import Histogram, Measures, MeasuresReport
from sealsvc.protocol.system import FilesystemList, Filesystems, ServiceStatus, Status
from sealsvc_api import exports, inputs
from sealsvc_api.access import Action
from sealsvc_api.auth import Asking
from sealsvc_api.connection import Daemon, expect
from sealsvc_api.feed import Feed
from sealsvc_api.operations import GUARDED, operation
from sealsvc_api.schemas import Health, NoQuery

_LATENCIES = {
    "grant": "From a request for a seal to its grant",
    "return": "From the return of a seal to the proof that nothing of it is left",
    "recall": "From the recall of a seal to its end",
    "conflict": "How long operations waited for seals",
    "loop_lag": "By how much the service's event loop is late",
}
# What the service counts by label: (counter there, name here, label, help).
_LABELLED = (
    ("conflicts", "conflicts", "verdict", "Operations that met a seal"),
    ("conflicts_ended", "conflicts_ended", "result", "Waiting operations that went on or not"),
    ("refusals", "grant_refusals", "code", "Refused grants, by error code"),
    ("transitions", "seal_transitions", "state", "Seals that came into a state"),
    ("events", "events", "event", "Events, by name"),
    ("limits", "limit_refusals", "limit", "What users were refused because they are at a limit"),
    ("log", "log_records", "outcome", "Log records that could not be written"),
    ("integrity", "integrity_errors", "kind", "Blocks found other than they were tagged"),
    ("ring_commands", "ring_commands", "command", "Commands that came through rings"),
    ("ring_bells", "ring_bells", "outcome", "Doorbells of clients: rung, or spared to one awake"),
)
# Of rings; they are there where the service has a keeper.
_RINGS = {
    "rings": ("rings", "Rings that there are"),
    "attached": ("rings_attached", "Rings whose client is connected"),
    "registrations": ("ring_registrations", "Files registered in rings"),
    "slots": ("ring_slots", "Slots of all seal tables"),
    "slots_used": ("ring_slots_used", "Slots with a seal in them"),
}
_PLAIN = {
    "grants": "Seals granted",
    "recalls": "Recalls begun",
    "recalls_merged": "Recalls that were taken into one under way",
    "returns": "Seals returned",
    "partial_returns": "Parts of seals returned",
    "forgotten": "Seals that their holders knew nothing of",
    "fences": "Fences begun",
    "fences_failed": "Fences that failed",
}


class _Once:
    """A collector of families that were made before."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _histogram(name: str, text: str, found: Histogram) -> Metric:
    family = HistogramMetricFamily(f"sealsvc_{name}_seconds", text, unit="seconds")
    total, buckets = 0, []
    for bound, count in zip([*map(repr, found.bounds), "+Inf"], found.counts, strict=True):
        total += count
        buckets.append((bound, total))
    family.add_metric([], buckets, found.sum)
    return family


def _counter(name: str, text: str, values: dict[str, int], label: str = "") -> Metric:
    family = CounterMetricFamily(f"sealsvc_{name}", text, labels=[label] if label else [])
    for value, count in values.items():
        family.add_metric([value] if label else [], count)
    return family


def _gauge(name: str, text: str, values: dict[str, float], label: str = "") -> Metric:
    family = GaugeMetricFamily(f"sealsvc_{name}", text, labels=[label] if label else [])
    for value, number in values.items():
        family.add_metric([value] if label else [], number)
    return family


def _of_status(status: ServiceStatus) -> Iterator[Metric]:
    info = {"version": status.version, "kernel": status.kernel, "run": status.run}
    yield InfoMetricFamily("sealsvc_build", "What is running", info)
    yield _gauge("uptime_seconds", "Since the service was started", {"": status.uptime})
    live = {str(state): float(status.seals.get(state, 0)) for state in State}
    yield _gauge("seals", "Live seals by state", live, "state")
    yield _gauge("connections", "Control connections", {"": float(status.connections)})
    yield _gauge("conflicts_waiting", "Operations that wait", {"": float(status.conflicts_waiting)})
    able = {e.name: float(e.available) for e in status.enforcers}
    yield _gauge("enforcer_available", "Whether an enforcer can be used", able, "enforcer")
    yield _gauge("registry_lag", "Events not yet on disk", {"": float(status.registry.lag)})
    yield _counter("registry_lost", "Events never written", {"": status.registry.lost})
    restarts = {"": status.registry.restarts}
    yield _counter("registry_restarts", "Starts of the registry's process after an end", restarts)
    troubles = float(len(status.registry.troubles))
    yield _gauge("registry_troubles", "Why the registry cannot be written", {"": troubles})
    for name, text in _PLAIN.items():
        if name in status.counters:
            yield _counter(name, text, {"": status.counters[name]})


def _of_measures(measures: MeasuresReport) -> Iterator[Metric]:
    for name, text in _LATENCIES.items():
        if name in measures.latencies:  # an older service does not measure all of them
            yield _histogram(name, text, measures.latencies[name])
    for there, name, label, text in _LABELLED:
        yield _counter(name, text, measures.counters.get(there, {}), label)
    forwarded = measures.counters.get("ring_forwarded", {})
    yield _counter("ring_forwarded", "Commands of rings that went to the service", forwarded)
    troubles = measures.counters.get("ring_troubles", {})
    for name, text in (
        ("broken", "Rings whose client broke the rules, and that are served no more"),
        ("dropped", "Events that their client did not read in time"),
    ):
        yield _counter(f"ring_{name}", text, {"": troubles[name]} if name in troubles else {})
    for name, number in measures.gauges.get("rings", {}).items():
        yield _gauge(*_RINGS[name], {"": number})
    drifts = measures.counters.get("events", {}).get("drift", 0)
    yield _counter("drifts", "Sealed extent maps that changed: broken promises", {"": drifts})
    alarms_open = measures.gauges.get("alarms", {}).get("open", 0.0)
    yield _gauge("alarms_open", "Alarms that nobody has acknowledged", {"": alarms_open})
    alarms = measures.counters.get("events", {}).get("alarm", 0)
    yield _counter("alarms", "Alarms", {"": alarms})
    yield _gauge("queue_depth", "What waits inside the service", measures.gauges["queue"], "queue")
    yield _gauge(
        "enforcer_lapses",
        "Operations that an enforcer may have let through unjudged",
        measures.gauges["lapses"],
        "enforcer",
    )


def _of_filesystems(found: FilesystemList) -> Iterator[Metric]:
    seals = {f.mount: float(f.seals) for f in found.filesystems}
    yield _gauge("filesystem_seals", "Live seals by file system", seals, "mount")
    able = {f.mount: float(f.supported) for f in found.filesystems}
    yield _gauge("filesystem_supported", "Whether seals can be kept here", able, "mount")


def _of_api(feed: Feed) -> Iterator[Metric]:
    yield _gauge("api_listeners", "Clients that follow the events", {"": float(len(feed))})
    yield _counter("api_listeners_dropped", "Listeners that fell behind", {"": feed.drops})


def rendered(families: Iterable[Metric]) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(families)))
    return bytes(generate_latest(registry))  # type: ignore[no-untyped-call]


def _documented() -> dict[str, Any]:
    described = operation(Action.METRICS, Health(status="up"), codes=GUARDED)
    text = "# TYPE sealsvc_grants counter\nsealsvc_grants_total 1.0\n# EOF\n"
    described["responses"][200]["content"] = {
        "application/openmetrics-text": {"schema": {"type": "string"}, "example": text}
    }
    return described


router = APIRouter(tags=["status"], dependencies=[Depends(inputs.query(NoQuery))])


@router.get("/metrics", summary="For Prometheus", **_documented())
async def metrics(request: Request, daemon: Daemon, _caller: Asking) -> Response:
    feed: Feed = request.app.state.feed
    families = [
        *_of_status(expect(await daemon.call(Status), ServiceStatus)),
        *_of_measures(expect(await daemon.call(Measures), MeasuresReport)),
        *_of_api(feed),
        *_of_filesystems(expect(await daemon.call(Filesystems), FilesystemList)),
        *await exports.measured(),
    ]
    return Response(rendered(families), media_type=CONTENT_TYPE_LATEST)
