"""sealctl ls as a user who is no operator: what is not shown is said."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import ONE, FakeDaemon
from sealctl_process import Start

from sealsvc.protocol.seals import List, SealPage
from sealsvc.protocol.system import ServiceStatus, Status

NOBODY = 65534


@pytest.fixture
def open_daemon() -> Iterator[FakeDaemon]:
    """At a place that any user may reach."""
    with tempfile.TemporaryDirectory(prefix="sealctl-hidden-") as directory:
        os.chmod(directory, 0o755)
        fake = FakeDaemon(Path(directory, "control.sock"))
        os.chmod(fake.path, 0o666)
        yield fake
        fake.close()


def as_nobody(sealctl: Start, daemon: FakeDaemon, *more: str) -> Any:
    user = {} if os.geteuid() else {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    place = {"SEALSVC_SOCKET": str(daemon.path), "PYTHONDONTWRITEBYTECODE": "1"}
    return sealctl("ls", *more, env_more=place, **user)


def status(live: int) -> ServiceStatus:
    return ServiceStatus(
        version="0.1.0", protocol=1, pid=5, uptime=1.0, simulated=False, kernel="6.18",
        roots=["/pmem"], enforcers=[], seals={"granted": live - 2, "active": 2},
        conflicts_waiting=0, connections=1, counters={},
    )  # fmt: skip


@pytest.mark.parametrize("own", [0, 1])
def test_seals_of_others_are_said_to_be_there(
    open_daemon: FakeDaemon, sealctl: Start, own: int
) -> None:
    running = as_nobody(sealctl, open_daemon)
    connection = open_daemon.accept()
    connection.answer(connection.request(List)[0], SealPage(seals=[ONE] * own))
    connection.answer(connection.request(Status)[0], status(12))
    code, out, err = running.result()
    assert code == 0
    assert len(out.splitlines()) == 1 + own
    assert f"{12 - own} seals of other users are not shown: root and operators see all" in err


def test_nothing_is_said_when_all_are_shown(open_daemon: FakeDaemon, sealctl: Start) -> None:
    running = as_nobody(sealctl, open_daemon)
    connection = open_daemon.accept()
    connection.answer(connection.request(List)[0], SealPage(seals=[ONE, ONE]))
    connection.answer(connection.request(Status)[0], status(2))
    assert running.result()[2] == ""


def test_a_filter_that_finds_nothing(open_daemon: FakeDaemon, sealctl: Start) -> None:
    running = as_nobody(sealctl, open_daemon, "--tag", "nic-0")
    connection = open_daemon.accept()
    connection.answer(connection.request(List)[0], SealPage(seals=[]))
    connection.answer(connection.request(Status)[0], status(12))
    assert "no seal matches of those that you may see" in running.result()[2]
