"""/v1/exports: sealed files that are served as block devices, as their processes record them.

Read from the runtime directory of this machine. Exports are started by `sealctl export` and
systemd; to stop one takes privilege that this process does not have: it asks the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Response
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from sealsvc.core.errors import Refusal
from sealsvc.exports.info import ExportInfo, ExportList, export_info
from sealsvc.exports.runtime import Runtime
from sealsvc.protocol.exports import NAME_PATTERN, StopExport
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.connection import PATIENT, Daemon
from sealsvc_api.operations import CHANGING, GUARDED, KEY, operation
from sealsvc_api.schemas import NoQuery, StopExportQuery, fields
from sealsvc_api.scope import GivenKey, asked_by

router = APIRouter(prefix="/exports", tags=["exports"])
_STATES = ("starting", "serving", "paused", "ended", "dead")
ExportName = Annotated[
    str, Path(pattern=NAME_PATTERN, description="An export's name", examples=["disk"])
]


def _found() -> list[ExportInfo]:
    runtime = Runtime()
    return [export_info(record, runtime, ask=False) for record in runtime.records()]


@router.get(
    "",
    summary="Exports of files in scope, with their pauses and latencies",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(Action.SEALS_READ, examples.EXPORTS, codes=GUARDED),
)
async def index(caller: Asking) -> Response:
    found = await asyncio.to_thread(_found)
    return answer(ExportList(exports=[info for info in found if caller.sees(info.file)]))


@router.get(
    "/{name}",
    summary="One export",
    dependencies=[Depends(inputs.query(NoQuery))],
    **operation(Action.SEALS_READ, examples.EXPORT, codes=(*GUARDED, "no-such-export")),
)
async def show(caller: Asking, name: ExportName) -> Response:
    for info in await asyncio.to_thread(_found):
        if info.name == name and caller.sees(info.file):
            return answer(info)
    raise Refusal("no-such-export", f"there is no export {name}", {"export": name})


@router.delete(
    "/{name}",
    summary="Stop an export: remove the device, return the seal",
    **operation(
        Action.EXPORTS_STOP,
        examples.EXPORT_STOPPED,
        codes=(*CHANGING, "no-such-export", "export-failed"),
        query=StopExportQuery,
        accepts=(KEY,),
    ),
)
async def stop(
    daemon: Daemon,
    caller: Asking,
    key: GivenKey,
    name: ExportName,
    query: Annotated[msgspec.Struct, Depends(inputs.query(StopExportQuery))],
) -> Response:
    asked = {"name": name, **fields(query), "below": caller.directories, **asked_by(caller, key)}
    return answer((await daemon.call(StopExport, PATIENT, **asked)).result)


async def measured() -> list[Metric]:
    """For /metrics."""
    return [*_families(await asyncio.to_thread(_found))]


def _families(found: list[ExportInfo]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "sealsvc_exports", "Exports by type and state", labels=["type", "state"]
    )
    for driver in sorted({info.driver for info in found}):
        for state in _STATES:
            of = [info for info in found if (info.driver, info.state) == (driver, state)]
            states.add_metric([driver, state], len(of))
    yield states
    served = [(info, info.counters) for info in found if info.counters is not None]
    for name, text, values in (
        ("pauses", "Recalls and discards that held requests",
         [([info.name], stats.pauses.count) for info, stats in served]),
        ("pause_seconds", "How long requests were held",
         [([info.name], stats.pauses.total / 1e9) for info, stats in served]),
        ("errors", "Requests that failed",
         [([info.name], stats.errors) for info, stats in served]),
        ("refusals", "Tries that the keeper of the seals refused, and that were made again",
         [([info.name], stats.refusals) for info, stats in served]),
    ):  # fmt: skip
        family = CounterMetricFamily(f"sealsvc_export_{name}", text, labels=["export"])
        for labels, value in values:
            family.add_metric(labels, value)
        yield family
    requests = CounterMetricFamily(
        "sealsvc_export_requests", "Requests served, by operation", labels=["export", "operation"]
    )
    seconds = CounterMetricFamily(
        "sealsvc_export_request_seconds", "Time of requests", labels=["export", "operation"]
    )
    depth = GaugeMetricFamily("sealsvc_export_in_flight", "Requests under way", labels=["export"])
    for info, stats in served:
        depth.add_metric([info.name], stats.in_flight)
        for op, histogram in stats.latency.items():
            requests.add_metric([info.name, op], histogram.count)
            seconds.add_metric([info.name, op], histogram.total / 1e9)
    yield from (requests, seconds, depth)
