"""The whole service on the simulated system: no root, no file system."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client, Reply
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Kind, State
from sealsvc.linux.host import ReleaseQuestion, RemainingMapping
from sealsvc.linux.processes import Process
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.seals import List, Mapped, Recall, RecallProgress, RecallSeals, Return, Show
from sealsvc.protocol.system import Audit, Filesystems, PmemRegion, Simulate
from sealsvc.runtime import clock
from sealsvc.runtime.config import Config, FenceSection, PolicySection, ServiceSection
from sealsvc.service.daemon import Daemon
from sealsvc.sim.enforcer import SimEnforcer, simulate
from sealsvc.sim.host import DEVICE, SimHost
from tests.support.waiting import PATIENCE

PATH = "/sim/a"
STRANGER, HEIR = 2**22 + 1, 2**22 + 2  # above any pid

# No proof takes so long: what waits for it waits for the clock, which a test moves.
FENCE = FenceSection(signal_grace=600.0, proof_timeout=600.0)


class Scene:
    def __init__(self, host: SimHost, enforcer: SimEnforcer, client: Client) -> None:
        self.host, self.enforcer, self.client = host, enforcer, client

    async def call(self, kind: Any, **fields: Any) -> Reply:
        return await asyncio.to_thread(self.client.call, kind, **fields)

    async def grant(self, **fields: Any) -> Reply:
        terms = {"grace": 100.0} | fields
        return await asyncio.to_thread(lambda: self.client.grant(path=PATH, **terms))

    async def ladder(self, seal: str) -> list[str]:
        return [step.step for step in (await self.call(Show, seal=seal)).seal.ladder]

    async def climbs(self, seal: str, step: str) -> None:
        while step not in await self.ladder(seal):
            await asyncio.sleep(0.01)

    async def leaves(self, seal: str, state: State) -> State:
        """The next state, once it is in this one no more."""
        while (found := (await self.call(Show, seal=seal)).seal.state) is state:
            await asyncio.sleep(0.01)
        return found

    async def do(self, action: str, **fields: Any) -> dict[str, Any]:
        return await simulate(
            self.host,
            self.enforcer,
            lambda: None,
            Simulate(id=1, action=action, path=PATH, **fields),
        )


@pytest.fixture
def play(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Scene], Awaitable[None]]], None]:
    monkeypatch.setattr(clock, "_ahead", 0.0)  # what passes in a test is over with it
    clock.look_for_jumps()

    async def stage(act: Callable[[Scene], Awaitable[None]]) -> None:
        socket = tmp_path / "s"
        config = Config(
            service=ServiceSection(socket=str(socket), audit_interval=0),
            policy=PolicySection(roots=["/sim"], operators=[os.getuid()]),
            fence=FENCE,
        )
        host = SimHost()
        enforcer = SimEnforcer(host)
        serving = asyncio.create_task(Daemon(config, host, [enforcer], None).run())
        try:
            while not socket.exists():
                if serving.done():
                    serving.result()
                await asyncio.sleep(0.01)
            with Client(str(socket), timeout=PATIENCE) as client:
                await asyncio.wait_for(act(Scene(host, enforcer, client)), PATIENCE)
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
            host.close()

    return lambda act: asyncio.run(stage(act))


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_a_conflict_waits_until_the_recalled_seal_is_returned(play):
    async def act(scene: Scene) -> None:
        reply = await scene.grant()
        assert reply.seal.extents == 4
        punch = asyncio.create_task(scene.do("conflict", length=4096, pid=STRANGER))
        push = await asyncio.to_thread(lambda: next(scene.client.pushes(PATIENCE)))
        assert isinstance(push, Recall)
        assert push.seal == reply.seal.id
        assert not punch.done()
        os.close(reply.fds[0])
        returned = await scene.call(Return, seal=reply.seal.id)
        assert returned.seal.state is State.RETURNED
        ended = await punch
        assert (ended["result"], ended["errno"]) == ("passed", None)
        assert ended["waited"] > 0

    play(act)


def test_a_refusing_seal_gives_etxtbsy_and_lets_writes_pass(play):
    async def act(scene: Scene) -> None:
        reply = await scene.grant(conflict=Conflict.REFUSE, kind=Kind.SHARED)
        ended = await scene.do("conflict", length=4096, pid=STRANGER)
        assert (ended["result"], ended["errno"]) == ("refused", "ETXTBSY")
        write = await scene.do("conflict", operation="write", length=4096, pid=STRANGER)
        assert write["result"] == "passed"
        os.close(reply.fds[0])

    play(act)


def test_an_audit_finds_what_drifted(play):
    async def act(scene: Scene) -> None:
        reply = await scene.grant()
        assert (await scene.call(Audit)).result.drifted == []
        await scene.do("drift", offset=20 << 20)
        report = (await scene.call(Audit)).result
        assert [d.logical for d in report.drifted] == [16 << 20]
        assert (await scene.call(Show, seal=reply.seal.id)).seal.state is State.LOST
        os.close(reply.fds[0])

    play(act)


def test_where_a_filesystem_lies_in_memory_is_what_the_host_says(play, monkeypatch):
    async def act(scene: Scene) -> None:
        (found,) = (await scene.call(Filesystems)).result.filesystems
        assert (found.mount, found.pmem) == ("/sim", None)
        asked: list[int] = []

        def region_of(device: int) -> tuple[int, int]:
            asked.append(device)
            return 1 << 32, 1 << 30

        monkeypatch.setattr(scene.host, "region_of", region_of)
        (found,) = (await scene.call(Filesystems)).result.filesystems
        assert (found.pmem, asked) == (PmemRegion(start=1 << 32, length=1 << 30), [DEVICE])

    play(act)


def test_a_mapping_keeps_a_seal_from_being_returned(play):
    async def act(scene: Scene) -> None:
        reply = await scene.grant()
        os.close(reply.fds[0])
        await scene.do("map", pid=os.getpid())
        with pytest.raises(Refusal, match="still-mapped"):
            await scene.call(Return, seal=reply.seal.id)
        await scene.do("unmap", pid=os.getpid())
        await scene.call(RecallSeals, seal=reply.seal.id, grace=5.0)
        await scene.call(Return, seal=reply.seal.id)

    play(act)


def test_an_overdue_seal_whose_map_changes_is_not_overdue_twice(play):
    """As hypothesis found it (test_life_model.py)."""

    async def act(scene: Scene) -> None:
        reply = await scene.grant(grace=0.05, fence="none")
        await scene.call(RecallSeals, seal=reply.seal.id)
        await scene.climbs(reply.seal.id, "overdue")
        await scene.do("drift", offset=20 << 20)
        await scene.call(Audit)
        assert (await scene.call(Show, seal=reply.seal.id)).seal.state is State.LOST
        await asyncio.sleep(0.2)
        assert (await scene.ladder(reply.seal.id)).count("overdue") == 1
        os.close(reply.fds[0])

    play(act)


def test_progress_gains_nothing_once_the_longest_recall_is_over(play):
    """As hypothesis found it (test_life_model.py)."""

    async def act(scene: Scene) -> None:
        reply = await scene.grant(grace=0.05, fence="none")
        await scene.call(RecallSeals, seal=reply.seal.id)
        await scene.climbs(reply.seal.id, "overdue")
        await scene.do("clock", seconds=PolicySection().max_recall)
        before = (await scene.call(Show, seal=reply.seal.id)).seal
        await scene.call(RecallProgress, seal=reply.seal.id)
        await asyncio.sleep(0.2)
        after = (await scene.call(Show, seal=reply.seal.id)).seal
        assert (after.ladder, after.seqid) == (before.ladder, before.seqid)
        os.close(reply.fds[0])

    play(act)


def test_a_killed_holder_that_ends_late_gains_no_time(play, holder, monkeypatch):
    """As hypothesis found it (test_life_model.py)."""
    monkeypatch.setattr(Process, "signal", lambda *_: True)  # nothing ends by it

    async def act(scene: Scene) -> None:
        reply = await scene.grant(grace=0.05, fence="kill", holder={"pid": holder.pid})
        await scene.do("map", pid=HEIR)
        await scene.call(RecallSeals, seal=reply.seal.id)
        await scene.climbs(reply.seal.id, "signal")
        await scene.do("clock", seconds=FENCE.signal_grace)
        await scene.climbs(reply.seal.id, "kill")
        await scene.do("clock", seconds=FENCE.proof_timeout - 1)
        holder.kill()
        holder.wait()
        await asyncio.sleep(0.1)
        await scene.do("clock", seconds=1)
        await scene.climbs(reply.seal.id, "failed")

    play(act)


def test_what_was_seen_while_the_holder_lived_proves_nothing(play, holder, monkeypatch):
    """As hypothesis found it (test_life_model.py)."""
    monkeypatch.setattr(Process, "signal", lambda *_: True)  # nothing ends by it

    async def act(scene: Scene) -> None:
        remaining_mappings = scene.host.remaining_mappings

        def look(question: ReleaseQuestion) -> list[RemainingMapping]:
            found = remaining_mappings(question)
            if holder.poll() is None:  # right behind the look it hands its mapping on, and ends
                scene.host.map(PATH, HEIR)
                holder.kill()
                holder.wait()
                time.sleep(0.1)
            return found

        monkeypatch.setattr(scene.host, "remaining_mappings", look)
        reply = await scene.grant(grace=0.05, fence="signal", holder={"pid": holder.pid})
        await scene.call(RecallSeals, seal=reply.seal.id)
        await scene.climbs(reply.seal.id, "signal")
        await scene.do("clock", seconds=FENCE.signal_grace)
        assert await scene.leaves(reply.seal.id, State.FENCING) is State.FENCE_FAILED

    play(act)


def test_the_pid_of_a_holder_that_is_gone_explains_no_mapping(play, holder):
    """Else one of two seals of it would be given up because of the other."""

    async def act(scene: Scene) -> None:
        granted = [
            await scene.grant(kind=Kind.SHARED, holder={"pid": holder.pid}) for _ in range(2)
        ]
        await scene.do("map", pid=HEIR)
        holder.kill()
        holder.wait()
        await scene.do("map", pid=holder.pid)  # another process has it now
        await scene.do("unmap", pid=HEIR)
        for reply in granted:
            await scene.leaves(reply.seal.id, State.GRANTED)
        await asyncio.sleep(0.2)
        for reply in granted:
            assert (await scene.call(Show, seal=reply.seal.id)).seal.state is State.ORPHANED

    play(act)


@pytest.mark.parametrize("step", ["open", "prepare", "settle", "read-map", "mark", "arm"])
def test_a_failed_step_leaves_nothing_armed(play, step: str):
    async def act(scene: Scene) -> None:
        await scene.do("create", size=1 << 20)
        await scene.do("fail", step=step, errno=errno.EIO)
        with pytest.raises(Refusal, match="io-error"):
            await scene.grant()
        assert (await scene.call(List)).result.seals == []
        ended = await scene.do("conflict", length=4096, pid=STRANGER)
        assert ended["result"] == "passed"

    play(act)


def test_an_unknown_action_is_refused(play):
    async def act(scene: Scene) -> None:
        with pytest.raises(Refusal, match="bad-request"):
            await scene.do("exit", pid=1)

    play(act)


def test_a_simulated_mapping_is_proven(play):
    async def act(scene: Scene) -> None:
        reply = await scene.grant(require={"map_sync": True, "populate": True, "pmd": True})
        os.close(reply.fds[0])
        seal = reply.seal.id
        with pytest.raises(Refusal, match="does not map the file"):
            await scene.call(Mapped, seal=seal)
        assert (await scene.call(Show, seal=seal)).seal.state is State.GRANTED
        await scene.do("map", pid=os.getpid())
        report = (await scene.call(Mapped, seal=seal)).result
        assert (report.state, report.method) == (State.ACTIVE, "simulated")
        assert report.present == report.pages > 0
        await scene.do("unmap", pid=os.getpid())
        assert (await scene.call(Return, seal=seal)).seal.state is State.RETURNED

    play(act)


def test_a_lapse_of_an_enforcer_alarms_and_has_every_map_looked_at(play: Any) -> None:
    async def act(scene: Scene) -> None:
        await scene.do("create", size=1 << 20)
        await scene.grant()
        await scene.call(Watch)
        scene.enforcer.missed = lambda: 3  # type: ignore[method-assign]
        await scene.do("drift")

        def heard() -> list[str]:
            names = []
            for push in scene.client.pushes(PATIENCE):
                names.append(push.name if isinstance(push, Event) else "recall")
                if "drift" in names:
                    break
            return names

        names = await asyncio.to_thread(heard)
        assert names.index("alarm") < names.index("drift")

    play(act)


def test_answers_about_very_many_seals_are_cut_to_a_message(play):
    many = 1200

    async def act(scene: Scene) -> None:
        def hold() -> None:
            for _ in range(many):
                for fd in scene.client.grant(path=PATH, kind="shared", length=4096).fds:
                    os.close(fd)

        await asyncio.to_thread(hold)
        await scene.do("drift", offset=0)
        report = (await scene.call(Audit)).result
        assert report.checked == many
        assert 0 < len(report.drifted) < many
        assert len(report.drifted) + report.more == many
        recalled = (await scene.call(RecallSeals, all=True)).result
        assert 0 < len(recalled.recalled) < many
        assert len(recalled.recalled) + recalled.more == many

    play(act)
