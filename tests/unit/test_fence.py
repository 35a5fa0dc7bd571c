"""Fences: a signal, a kill, a proof; and what is done where the terms allow none."""

from __future__ import annotations

import asyncio
import errno
import signal
import subprocess
from collections.abc import Iterator

import pytest

from sealsvc.core.model import Fence, State
from sealsvc.lifecycle.seals import Seal
from sealsvc.runtime import clock
from sealsvc.runtime.config import FenceSection
from tests.support.lifecycle import FILE, Lifecycle, lifecycle, sleeper
from tests.support.waiting import PATIENCE

STRANGER = 2**22 + 1  # above any pid


@pytest.fixture(autouse=True)
def own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes in a test is over with it."""
    monkeypatch.setattr(clock, "_ahead", 0.0)


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    with sleeper() as process:
        yield process
        process.kill()


async def reaches(seal: Seal, state: State) -> None:
    async with asyncio.timeout(PATIENCE):
        while seal.state is not state:
            await asyncio.sleep(0.01)


async def overdue(parts: Lifecycle, holder: int, fence: Fence) -> Seal:
    """A seal whose recall's deadline is over."""
    seal = await parts.grant(holder=holder, fence=fence, grace=5.0)
    parts.recaller.recall(seal, "asked for")
    clock.advance(6.0)
    return seal


def watched(parts: Lifecycle, seal: Seal, process: subprocess.Popen[bytes]) -> None:
    """Tell the lifecycle of the holder's end, as Holders does."""
    loop, pidfd = asyncio.get_running_loop(), seal.process.pidfd

    def ended() -> None:
        loop.remove_reader(pidfd)
        process.wait()
        parts.fencing.holder_exited(seal)

    loop.add_reader(pidfd, ended)


def test_a_signal_that_helps_ends_in_a_proof(holder: subprocess.Popen[bytes]) -> None:
    async def scene() -> None:
        async with lifecycle(fence=FenceSection(signal_grace=60.0)) as parts:
            seal = await overdue(parts, holder.pid, Fence.SIGNAL)
            watched(parts, seal, holder)
            await reaches(seal, State.REVOKED)
            assert holder.returncode == -signal.SIGTERM
            assert [step.step for step in seal.ladder] == ["notify", "signal", "proof"]
            assert parts.fencing.counters == {"fences": 1, "fences_failed": 0}

    asyncio.run(scene())


def test_what_ignores_the_signal_is_killed(holder: subprocess.Popen[bytes]) -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            holder.send_signal(signal.SIGSTOP)  # SIGTERM stays pending
            seal = await overdue(parts, holder.pid, Fence.KILL)
            watched(parts, seal, holder)
            await reaches(seal, State.REVOKED)
            assert holder.returncode == -signal.SIGKILL
            assert [step.step for step in seal.ladder] == ["notify", "signal", "kill", "proof"]

    asyncio.run(scene())


def test_a_fence_that_does_not_help_fails_and_refuses(holder: subprocess.Popen[bytes]) -> None:
    async def scene() -> None:
        async with lifecycle(fence=FenceSection(signal_grace=0.05, proof_timeout=0.05)) as parts:
            holder.send_signal(signal.SIGSTOP)
            seal = await overdue(parts, holder.pid, Fence.SIGNAL)
            await reaches(seal, State.FENCE_FAILED)
            assert seal.ladder[-1].step == "failed"
            assert "did not end" in seal.reason
            assert parts.conflict().done.result(timeout=0) == errno.EBUSY
            assert parts.fencing.counters["fences_failed"] == 1

    asyncio.run(scene())


def test_what_outlives_the_holder_keeps_the_seal(holder: subprocess.Popen[bytes]) -> None:
    """A descriptor or mapping that was passed on."""

    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(holder=holder.pid)
            parts.host.map(FILE, STRANGER)
            holder.kill()
            holder.wait()
            parts.fencing.holder_exited(seal)
            await reaches(seal, State.ORPHANED)
            await asyncio.sleep(0.1)
            assert seal.live
            parts.host.unmap(FILE, STRANGER)
            async with asyncio.timeout(PATIENCE):
                await seal.released.wait()
            assert not parts.told("alarm")

    asyncio.run(scene())


def test_without_a_fence_the_seal_stays_and_what_waits_is_refused() -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(fence=Fence.NONE, grace=5.0)
            waiter = parts.conflict()
            clock.advance(6.0)
            async with asyncio.timeout(PATIENCE):
                assert await asyncio.wrap_future(waiter.done) == errno.EBUSY
            assert (seal.state, seal.is_overdue) == (State.RECALLED, True)
            parts.recaller.progress(seal)
            assert not seal.is_overdue
            assert not parts.conflict().done.done(), "it waits again"

    asyncio.run(scene())


def test_a_deadline_that_is_postponed_is_not_missed(holder: subprocess.Popen[bytes]) -> None:
    async def scene() -> None:
        async with lifecycle() as parts:
            seal = await parts.grant(holder=holder.pid, fence=Fence.SIGNAL, grace=20.0)
            parts.recaller.recall(seal, "asked for")
            clock.advance(15.0)
            parts.recaller.progress(seal)
            clock.advance(15.0)
            await asyncio.sleep(0.05)
            assert seal.state is State.RECALLED
            assert parts.fencing.counters["fences"] == 0

    asyncio.run(scene())
