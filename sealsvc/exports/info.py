"""What is told of an export: its record, its counters and its time-outs together."""

from __future__ import annotations

from typing import Any

import msgspec

from sealsvc.exports.drivers import driver_of
from sealsvc.exports.runtime import Record, Runtime
from sealsvc.exports.stats import Stats, read_stats
from sealsvc.exports.timeouts import Timeouts, timeouts_of

_MS = 1e6


class ExportInfo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="export"):
    """`state` is that of its counters (starting, serving, paused, ended), or dead when its process
    has ended without being told to: `sealctl export recover` serves it again. `pauses` and
    `latency` are milliseconds, upper bounds of p50 and p99, by counter."""

    name: str
    driver: str
    state: str
    device: str
    file: str
    pid: int
    seal: str
    why: str
    paused_for: float
    timeouts: Timeouts
    pauses: dict[str, float]
    latency: dict[str, dict[str, float]]
    counters: Stats | None
    details: dict[str, Any]


class ExportList(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="exports"):
    exports: list[ExportInfo]


def export_info(record: Record, runtime: Runtime, *, ask: bool = True) -> ExportInfo:
    """`ask`: also what the type has to ask the kernel for, which may take privilege."""
    spec = record.spec
    driver = driver_of(spec, runtime)
    stats = read_stats(runtime.stats(spec.name))
    if stats is not None and stats.pid != record.pid:
        stats = None
    latency = {} if stats is None else stats.latency
    return ExportInfo(
        name=spec.name,
        driver=spec.type,
        state=_state(record, stats),
        device=record.device,
        file=spec.file,
        pid=record.pid,
        seal=stats.seal if stats else "",
        why=stats.why if stats else record.failure,
        paused_for=stats.paused_for if stats else 0.0,
        timeouts=timeouts_of(driver),
        pauses=_summary(stats.pauses) if stats else {},
        latency={op: _summary(found) for op, found in latency.items() if found.count},
        counters=stats,
        details=driver.status(record) if ask else record.left,
    )


def _state(record: Record, stats: Stats | None) -> str:
    if not record.lives:
        return "dead"
    return stats.state if stats else "starting"


def _summary(found: Any) -> dict[str, float]:
    return {
        "count": found.count,
        "p50": found.quantile(0.5) / _MS,
        "p99": found.quantile(0.99) / _MS,
        "longest": found.longest / _MS,
    }
