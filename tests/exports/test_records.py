"""Records and counters of exports, and what Prometheus is told of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from sealsvc.exports.base import Spec
from sealsvc.exports.info import export_info
from sealsvc.exports.runtime import Record, Runtime, start_time
from sealsvc.exports.stats import OwnStats
from sealsvc_api.exports import measured
from sealsvc_api.metrics import rendered


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setenv("SEALSVC_EXPORTS", str(tmp_path))
    return Runtime()


def record(runtime: Runtime, name: str, pid: int) -> Record:
    spec = Spec(name=name, type="dm", file="/srv/disk.img", grace=5.0, socket="/run/s")
    made = Record(spec=spec, pid=pid, start_time=start_time(pid), device="/dev/dm-7")
    runtime.write(made)
    return made


def test_a_record_is_what_was_written_and_tells_whether_its_process_lives(
    runtime: Runtime,
) -> None:
    made = record(runtime, "disk", os.getpid())
    assert runtime.read("disk") == made
    assert made.lives
    assert not msgspec.structs.replace(made, start_time=made.start_time + 1).lives
    assert runtime.names() == ["disk"]
    runtime.remove("disk")
    assert list(runtime.directory.iterdir()) == []


def test_pauses_are_counted_and_told(runtime: Runtime) -> None:
    made = record(runtime, "disk", os.getpid())
    stats = OwnStats(runtime.stats("disk"), os.getpid(), 4096)
    stats.sealed("65f0c0ffee5ea15e00000001")
    stats.serving()
    stats.paused("recalled: truncate")
    paused = export_info(made, runtime, ask=False)
    assert (paused.state, paused.why) == ("paused", "recalled: truncate")
    assert paused.paused_for > 0
    stats.serving()
    info = export_info(made, runtime, ask=False)
    assert (info.state, info.pauses["count"], info.seal) == (
        "serving", 1, "65f0c0ffee5ea15e00000001",
    )  # fmt: skip
    assert (info.timeouts.recall, info.timeouts.initiator) == (5.0, 30.0)
    assert 0 < info.pauses["longest"] <= info.pauses["p99"] * 2


async def collected() -> str:
    return rendered(await measured()).decode()


def test_prometheus_is_told_states_and_pauses(runtime: Runtime) -> None:
    record(runtime, "disk", os.getpid())
    stats = OwnStats(runtime.stats("disk"), os.getpid(), 4096)
    stats.paused("a test")
    stats.serving()
    record(runtime, "lost", 1)
    runtime.write(Record(spec=runtime.read("lost").spec, pid=1, start_time=1))
    said = asyncio.run(collected())
    assert 'sealsvc_exports{state="serving",type="dm"} 1.0' in said
    assert 'sealsvc_exports{state="dead",type="dm"} 1.0' in said
    assert 'sealsvc_export_pauses_total{export="disk"} 1.0' in said
    assert 'sealsvc_export_requests_total{export="disk",operation="read"} 0.0' in said
