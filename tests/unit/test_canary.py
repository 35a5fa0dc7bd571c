"""An enforcer that no longer enforces is noticed, gives no grants, and comes back."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.enforce import bpf
from sealsvc.enforce.bpf_programs import Program, Programs
from sealsvc.enforce.lease import LeaseEnforcer
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.linux.native import lib
from sealsvc.monitor import canary
from sealsvc.monitor.canary import Canary
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.workers import Workers
from sealsvc.sim.enforcer import SimEnforcer
from sealsvc.sim.host import SimHost
from tests.support.waiting import PATIENCE


class Fragile(SimEnforcer):
    reason = ""
    fails = False

    def verify(self) -> str:
        if self.fails:
            raise OSError("it cannot be asked")
        return self.reason


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "INTERVAL", 0.01)


@pytest.mark.usefixtures("quick")
def test_it_is_unavailable_until_it_works_again_and_all_is_audited() -> None:
    enforcer = Fragile(SimHost())
    enforcers, events, audits = EnforcerSet([enforcer]), EventLog(100, lambda _: None), [0]

    async def audit() -> None:
        audits[0] += 1

    async def until(reason: str) -> None:
        while enforcers.reasons[enforcer.name] != reason:
            await asyncio.sleep(0.005)

    async def audited(times: int) -> None:
        while audits[0] < times:
            await asyncio.sleep(0.005)

    async def scene() -> None:
        workers = Workers(1)
        task = asyncio.create_task(Canary(enforcers, events, workers, audit).run())
        await asyncio.sleep(0.05)
        assert enforcers.available == [enforcer]
        assert audits == [0]
        enforcer.reason = "it was turned off"
        await asyncio.wait_for(until("it was turned off"), PATIENCE)
        assert enforcers.available == []
        await asyncio.wait_for(audited(audits[0] + 2), PATIENCE)  # again and again meanwhile
        enforcer.reason = ""
        await asyncio.wait_for(until(""), PATIENCE)
        assert enforcers.available == [enforcer]
        enforcer.fails = True
        await asyncio.wait_for(until("it cannot be tried: it cannot be asked"), PATIENCE)
        task.cancel()
        workers.stop()

    asyncio.run(scene())
    told = [event.data["reason"] for event in events.after(0, 100)[0] if event.name == "alarm"]
    assert len(told) == 3
    assert "it was turned off" in told[0]
    assert "enforces again" in told[1]


def test_bpf_is_off_with_the_kernels_switch_and_without_its_pins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    switch, links = tmp_path / "ftrace_enabled", tmp_path / "links"
    switch.write_text("1\n")
    links.mkdir()
    (links / "fallocate").touch()
    monkeypatch.setattr(bpf, "SWITCH", switch)
    enforcer = bpf.BpfEnforcer(None, tmp_path)  # type: ignore[arg-type]
    assert enforcer.verify() == "", "nothing is loaded"
    enforcer._programs = Programs(None)
    on = Program("fallocate", lib.SEAL_BPF_ON, spared=True, misses=0, why="")
    monkeypatch.setattr(enforcer._programs, "states", lambda: [on])
    assert enforcer.verify() == ""
    switch.write_text("0\n")
    assert "ftrace_enabled" in enforcer.verify()
    switch.write_text("1\n")
    (links / "fallocate").unlink()
    assert "fallocate" in enforcer.verify()


@pytest.fixture
def no_sigio() -> Iterator[None]:
    """As the service has it: a lease that breaks signals the process."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGIO, before)


@pytest.mark.usefixtures("no_sigio")
def test_a_lease_of_our_own_holds_an_open_up(monkeypatch: pytest.MonkeyPatch) -> None:
    enforcer = LeaseEnforcer(None, None)  # type: ignore[arg-type]
    assert enforcer.verify() == ""
    monkeypatch.setattr("fcntl.fcntl", lambda *_: 0)
    assert "was not held up" in enforcer.verify()
