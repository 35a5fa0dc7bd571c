"""watch, audit, status and filesystems: what they ask, and what they make of the answers."""

from __future__ import annotations

import json
import signal

import pytest
from fake_daemon import ONE, TWO, FakeDaemon, as_json
from sealctl_process import Start

from sealsvc.cli.event_lines import TELL, told
from sealsvc.core.model import Drift, Gap, Kind
from sealsvc.protocol.events import EVENTS as EVENT_NAMES
from sealsvc.protocol.events import Event, Watch, Watching
from sealsvc.protocol.system import (
    Audit,
    AuditReport,
    EnforcerInfo,
    FilesystemInfo,
    FilesystemList,
    Filesystems,
    PmemRegion,
    ServiceStatus,
    Status,
)

EVENTS = [
    Event(seq=8, time=0.0, name="granted", seal=ONE.id, data={"seal": as_json(ONE)}),
    Event(seq=9, time=61.0, name="state", seal=ONE.id, data={"from": "active", "to": "lost"}),
    Event(seq=10, time=62.0, name="news", data={"text": "\x1b[2J", "n": [1]}),
]


@pytest.mark.parametrize("form", ["human", "json"])
def test_watch(daemon: FakeDaemon, sealctl: Start, form: str) -> None:
    running = sealctl("watch", "--since", "7", "--count", "3", "-o", form)
    connection = daemon.accept()
    request, _ = connection.request(Watch)
    assert request.since == 7
    connection.push(EVENTS[0])  # replayed before the answer
    connection.answer(request, Watching(seq=8, gap=True))
    connection.push(EVENTS[1])
    connection.push(EVENTS[2])
    status, out, err = running.result()
    assert status == 0
    assert "some are missing" in err
    lines = out.splitlines()
    if form == "json":
        assert [json.loads(line) for line in lines] == [as_json(event) for event in EVENTS]
    else:
        sentence = "/pmem/db 1M:64K exclusive to process 4711 (server)"
        assert lines[0].split(maxsplit=4) == ["8", "00:00:00", "granted", ONE.id, sentence]
        assert lines[1].endswith("active -> lost")
        assert lines[2].endswith(r"text=\x1b[2J n=[1]")


def test_every_event_has_a_sentence() -> None:
    """No field of it, and nothing of its JSON, is shown as it is."""
    assert TELL.keys() == EVENT_NAMES.keys()
    error = {
        "path": "/pmem/db", "block": 7, "offset": 28672, "kind": "corrupt", "field": "guard",
        "at": "scrub", "more": 2,
    }  # fmt: skip
    sentence = told("integrity", {"error": error})
    assert sentence == (
        "/pmem/db block 7 at 28672: corrupt, guard, found at scrub, and 2 blocks more"
    )


def test_watch_tells_that_the_service_went(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("watch")
    connection = daemon.accept()
    request, _ = connection.request(Watch)
    connection.answer(request, Watching(seq=0, gap=False))
    connection.push(EVENTS[1])
    # Each line is there at once, through a pipe too.
    assert "active -> lost" in running.process.stdout.readline()
    connection.close()
    assert running.result()[0] == 7


def test_watch_until_interrupted(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("watch")
    connection = daemon.accept()
    request, _ = connection.request(Watch)
    connection.answer(request, Watching(seq=0, gap=False))
    connection.push(EVENTS[1])
    running.process.stdout.readline()
    running.signal(signal.SIGINT)
    status, _, err = running.result()
    assert (status, err.strip()) == (130, "")


DRIFT = Drift(seal=ONE.id, path="/pmem/db", logical=1 << 20, expected="x", found="y")


@pytest.mark.parametrize(
    ("report", "status"),
    [
        (AuditReport(checked=2, drifted=[], unreadable=[]), 0),
        (AuditReport(checked=2, drifted=[], unreadable=[TWO.id]), 1),
        (AuditReport(checked=2, drifted=[DRIFT], unreadable=[TWO.id]), 8),
    ],
)
def test_audit(daemon: FakeDaemon, sealctl: Start, report: AuditReport, status: int) -> None:
    for form in ("human", "json"):
        running = sealctl("audit", "-o", form)
        assert daemon.serve(Audit, report).seal is None
        got, out, _ = running.result()
        assert got == status
        if form == "json":
            assert json.loads(out) == as_json(report)
        else:
            assert out.startswith(f"2 checked, {len(report.drifted)} drifted")
            assert ("1M" in out) == bool(report.drifted)
            assert (TWO.id in out) == bool(report.unreadable)


STATUS = ServiceStatus(
    version="0.1.0",
    protocol=1,
    pid=5,
    uptime=307.0,
    simulated=True,
    kernel="6.18.15",
    roots=["/pmem"],
    enforcers=[EnforcerInfo(name="pin", available=False, reason="not fsdax")],
    seals={"active": 2, "lost": 0},
    conflicts_waiting=1,
    connections=3,
    counters={"grants": 9},
)


def test_status(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("status")
    daemon.serve(Status, STATUS)
    status, out, _ = running.result()
    assert status == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "version 0.1.0, protocol 1 (simulated)" in lines
    assert "pid 5, up 5m07s" in lines
    assert "seals 2 active" in lines
    assert "enforcer pin absent: not fsdax" in lines
    assert "grants 9" in lines
    running = sealctl("status", "-o", "json")
    daemon.serve(Status, STATUS)
    assert json.loads(running.result()[1]) == as_json(STATUS)


def test_filesystems(daemon: FakeDaemon, sealctl: Start) -> None:
    found = FilesystemInfo(
        mount="/pmem",
        type="xfs",
        device="259:0",
        block_size=4096,
        reflink=True,
        dax=True,
        enforcers=["bpf"],
        supported=True,
        reason="",
        gaps=[Gap(risk="xfs-swapext", kinds=[Kind.SHARED], why="no hook")],
        seals=2,
        pmem=PmemRegion(start=1 << 32, length=1 << 30),
    )
    answer = FilesystemList(filesystems=[found])
    running = sealctl("filesystems")
    daemon.serve(Filesystems, answer)
    status, out, _ = running.result()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert status == 0
    assert lines[1] == "/pmem xfs 259:0 4K reflink, dax, pmem 2 bpf -"
    assert lines[-1] == "xfs-swapext /pmem shared no hook"
    running = sealctl("filesystems", "-o", "json")
    daemon.serve(Filesystems, answer)
    assert json.loads(running.result()[1]) == as_json(answer)
