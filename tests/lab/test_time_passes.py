"""Deadlines are moments of CLOCK_BOOTTIME: suspend counts, what the wall clock says does not."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Renew, Show
from tests.lab import LabError, run
from tests.lab.dax_files import make
from tests.lab.pmem import mounted_dax
from tests.lab.suspended import ASLEEP, POLICY, TTL
from tests.service.test_environment import sealed
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.timeout(600)
HOUR = 3600.0
MiB = 1 << 20


def state(client: Client, seal: str) -> str:
    return client.call(Show, seal=seal).seal.state


def jump(seconds: float) -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)


@pytest.mark.lab
@pytest.mark.parametrize("hours", [5, -10])
def test_the_wall_clock_jumps(hours: int, tmp_path: Path) -> None:
    ttl = 300.0  # a service under emulation may take long to start
    with mounted_dax("xfs") as point:
        running = Running(tmp_path, [point], POLICY)
        running.start()
        running.ready()
        try:
            with Client(str(running.socket), timeout=PATIENCE) as client:
                asked = time.clock_gettime(time.CLOCK_BOOTTIME)
                seal = sealed(client, make(point / "file", MiB), ttl=ttl).id
                jump(hours * HOUR)
                time.sleep(1.5)  # housekeeping looks twice a second
                assert state(client, seal) == "granted"
            # Nor does the journal know of any other clock.
            running.kill()
            jump(hours * HOUR)
            running.start()
            running.ready()
            with Client(str(running.socket), timeout=PATIENCE) as client:
                left = client.call(Show, seal=seal).seal.expires_in
                assert left is not None
                passed = time.clock_gettime(time.CLOCK_BOOTTIME) - asked
                assert ttl - passed - 1 < left <= ttl
                asked = time.clock_gettime(time.CLOCK_BOOTTIME)
                client.call(Renew, seal=seal, ttl=2.0)
                jump(hours * HOUR)
                until(lambda: state(client, seal) == "expired", PATIENCE)
                assert time.clock_gettime(time.CLOCK_BOOTTIME) - asked >= 2.0
        finally:
            jump(-3 * hours * HOUR)
            running.end()


@pytest.mark.usefixtures("lab")
def test_suspend_counts() -> None:
    with pytest.raises(LabError) as caught:
        run([sys.executable, "-m", "tests.lab.suspended"], timeout=300.0)
    console = str(caught.value)
    found = re.search(r"suspend: expired and overdue after boottime=(\S+) monotonic=(\S+)", console)
    assert found, console
    boottime, monotonic = map(float, found.groups())
    assert boottime >= ASLEEP - 1 > TTL  # the machine's own clock counts whole seconds
    assert monotonic < TTL
