"""The whole measurement, against a small service whose mechanism is a real lease."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Kind
from sealsvc.doctor import service
from sealsvc.doctor.actor import Actor
from sealsvc.doctor.operations import CATALOGUE
from sealsvc.doctor.report import Row, measure
from sealsvc.doctor.verdict import Result
from tests.support.waiting import until


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "control.sock")
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "lease_service.py"), path]
    )
    until(lambda: os.path.exists(path))
    yield path
    process.kill()
    process.wait()


def by_name(rows: list[Row], kind: Kind) -> dict[str, Row]:
    return {row.operation: row for row in rows if row.kind is kind}


@pytest.mark.timeout(600)
def test_a_lease_makes_openers_wait(scratch: Path, leases: str) -> None:
    told: list[Row] = []
    report = measure(
        str(scratch),
        socket=leases,
        conflicts=[Conflict.WAIT],
        disruptive=True,
        progress=told.append,
    )
    assert told == report.coverage
    assert report.enforcers == ["lease"]
    rows = by_name(report.coverage, Kind.EXCLUSIVE)
    for name in ("open-rdwr", "truncate-into", "fallocate-punch-hole", "fallocate-tool"):
        assert (rows[name].result, rows[name].note) == (Result.WAITS, "")
    # truncate(1) opens with O_NONBLOCK, and so does not wait for a lease.
    assert (rows["truncate-tool"].result, rows["truncate-tool"].errno) == (Result.REFUSED, "EAGAIN")
    for name in ("rename", "unlink", "fitrim"):
        assert rows[name].result is Result.PASSED
    assert rows["pwrite/early"].note == "at grant: file-in-use"
    for name in ("remount-ro", "umount"):
        assert (rows[name].result, rows[name].errno) == (Result.REFUSED, "EBUSY")
    wanted = {n for n, op in CATALOGUE.items() if op.applies_to(report.filesystem)}
    assert set(rows) == wanted


def test_what_a_lease_does_not_see_is_told(scratch: Path, leases: str) -> None:
    names = ["truncate-into/overlay", "fallocate-punch-hole/proc-pid-fd"]
    report = measure(
        str(scratch),
        socket=leases,
        kinds=[Kind.EXCLUSIVE],
        conflicts=[Conflict.WAIT],
        operations=names,
    )
    rows = by_name(report.coverage, Kind.EXCLUSIVE)
    assert rows["fallocate-punch-hole/proc-pid-fd"].result is Result.WAITS
    # KERNEL.md: truncate(2) through an overlay passes a lease on the upper file.
    overlaid = rows["truncate-into/overlay"]
    assert (overlaid.result, overlaid.map_changed) == (Result.NOT_COVERED, True)


@pytest.mark.parametrize(
    ("script", "asleep"),
    [
        ("exec sleep 600", True),
        ("sleep 600", True),
        ("while :; do :; done", False),
        ("{ while :; do :; done; } & sleep 600", False),
    ],
)
def test_what_sleeps_is_told_from_what_could_run(script: str, asleep: bool) -> None:
    """Also of what the process has started."""
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as process:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            actor = Actor(ours, process.pid)
            try:
                until(lambda: actor.asleep() is asleep)
                time.sleep(0.2)
                assert actor.asleep() is asleep
            finally:
                os.killpg(process.pid, signal.SIGKILL)


def test_a_refusal_of_the_grant_is_a_result(scratch: Path, leases: str) -> None:
    report = measure(str(scratch), socket=leases, kinds=[Kind.SHARED], operations=["open-trunc"])
    assert [row.note for row in report.coverage] == ["at grant: risk-not-accepted"] * 2
    assert {row.errno for row in report.coverage} == {"EOPNOTSUPP"}


def test_without_a_service_only_root_measures(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refusal, match="service-unavailable"):
        measure(str(scratch), socket=str(tmp_path / "none"))
    with pytest.raises(Refusal, match="denied"):
        measure(str(scratch), enforcers=["lease"])


def test_nobody_s_disk_is_disturbed() -> None:
    with pytest.raises(Refusal, match="only on a loop device"):
        measure("/dev/shm", disruptive=True)


def test_a_file_system_without_extent_maps_is_refused() -> None:
    with pytest.raises(Refusal, match="filesystem-unsupported"):
        measure("/dev/shm")


def test_an_unknown_operation_is_named(scratch: Path, leases: str) -> None:
    with pytest.raises(Refusal, match="no operation 'fly'"):
        measure(str(scratch), socket=leases, operations=["fly"])


def test_the_private_service_is_configured_for_the_scratch_directory_alone() -> None:
    text = service.configuration("/run/x.sock", ["lease"], '/mnt/a "b"')
    assert text == (
        '[service]\nsocket = "/run/x.sock"\n[policy]\nroots = ["/mnt/a \\"b\\""]\n'
        'accept_risks = ["all"]\n[registry]\nenabled = false\n[enforcers]\nuse = ["lease"]\n'
    )
