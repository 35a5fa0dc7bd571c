"""Hypothesis drives the service, on a simulated kernel and in virtual time, against the model.

The service is the real one, with its control socket, its tasks and its journal; holders are real
processes, which fences really kill.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.protocol.messages import Failure
from sealsvc.protocol.seals import (
    Downgrade,
    Forgotten,
    Mapped,
    RecallProgress,
    RecallSeals,
    Renew,
    Return,
    Show,
)
from sealsvc.protocol.system import Audit, Simulate
from sealsvc.runtime import clock
from sealsvc.runtime.config import Config, FenceSection, PolicySection, ServiceSection
from sealsvc.service.systems import sim_daemon
from tests.sim import model as reference
from tests.support.waiting import PATIENCE

# Others every time; a number of them in the environment has it look for longer.
EXAMPLES = int(os.environ.get("SEALSVC_MODEL_EXAMPLES", "25"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(max(600, EXAMPLES))]

UNIT = 65536
FILES = ("/sim/a", "/sim/b")
STRANGER, HEIR = 2**22 + 1, 2**22 + 2

spans = st.tuples(st.integers(0, 7), st.integers(1, 8)).map(lambda s: (s[0], min(8, s[0] + s[1])))
numbers = st.integers(0, 1 << 16)


class Service:
    """The daemon, in a thread with an event loop of its own."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "s"
        config = Config(
            service=ServiceSection(socket=str(self.socket), audit_interval=0),
            policy=PolicySection(
                roots=["/sim"], courtesy=reference.COURTESY, max_recall=reference.MAX_RECALL,
                max_grace=1e5,
            ),
            fence=FenceSection(
                signal_grace=reference.SIGNAL_GRACE, proof_timeout=reference.PROOF_TIMEOUT
            ),
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run, args=(config,))
        self._stop: Callable[[], object] = lambda: None
        self._thread.start()
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert time.monotonic() < deadline, "the service does not start"
            time.sleep(0.005)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(self.socket)) == 0

    def _run(self, config: Config) -> None:
        async def serve() -> None:
            daemon = sim_daemon(config)
            loop = asyncio.get_running_loop()
            loop.add_signal_handler = lambda *_: None  # type: ignore[method-assign]
            self._stop = lambda: loop.call_soon_threadsafe(daemon._stop.set)
            await daemon.run()

        asyncio.run(serve())

    def stop(self) -> None:
        self._stop()
        self._thread.join(PATIENCE)


def has_ended(pid: int) -> bool:
    """A child of ours; it stays a zombie, so that nobody else gets its pid."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def machine_for(directory: Path) -> type[RuleBasedStateMachine]:
    runs = itertools.count()

    class Life(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            where = directory / str(next(runs))
            where.mkdir()
            self.service = Service(where)
            self.client = Client(str(self.service.socket), timeout=PATIENCE)
            self.intruders = Client(str(self.service.socket), timeout=PATIENCE)
            self.model = reference.Model()
            self.ids: dict[int, str] = {}
            self.processes: dict[int, subprocess.Popen[bytes]] = {}
            self.holders: list[reference.Process] = []
            self.heir = reference.Process(HEIR, deaf=True)
            self.asked: dict[int, reference.Conflict] = {}
            self.names = itertools.count()

        @initialize()
        def files(self) -> None:
            for path in FILES:
                self.simulate("create", path=path, size=8 * UNIT)
            for deaf in (False, True, False):
                self.hire(deaf)

        def hire(self, deaf: bool) -> None:
            trap = "trap '' TERM;" if deaf else ""
            process = subprocess.Popen(
                ["sh", "-c", f"{trap} echo; exec sleep 1000"], stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            process.stdout.readline()
            self.processes[process.pid] = process
            self.holders.append(reference.Process(process.pid, deaf))

        # Asking both

        def simulate(self, action: str, **fields: Any) -> dict[str, Any]:
            result: Any = self.client.call(Simulate, action=action, **fields).result
            return dict(result.result)

        def both(self, ask: Callable[[], Any], expect: Callable[[], object]) -> Any:
            code, answer = None, None
            try:
                expect()
            except reference.Refused as refused:
                code = refused.code
            try:
                answer = ask()
                found = None
            except Refusal as refusal:
                found = refusal.code
            assert found == code, f"the service says {found}, the model {code}"
            self.compare()
            return answer

        def seal(self, number: int) -> reference.Seal:
            return self.model.seals[number % len(self.model.seals)]

        def own(self, kind: type, seal: reference.Seal, **fields: Any) -> Callable[[], Any]:
            return lambda: self.client.call(kind, seal=self.ids[seal.name], **fields)

        def compare(self) -> None:
            """In the end both say the same; the service may need a moment."""
            deadline = time.monotonic() + PATIENCE
            while (difference := self.difference()) and time.monotonic() < deadline:
                time.sleep(0.005)
            assert not difference, difference

        def agrees(self, deadline: float | None, found: float | None) -> bool:
            """Whether the service has come as far: what it notices late, it counts from then."""
            if deadline is None or found is None:
                return deadline is found
            return abs(deadline - self.model.now - found) < reference.PROOF_TIMEOUT / 4

        def difference(self) -> str:
            self.hear()
            for holder in self.holders:
                if not holder.alive and not has_ended(holder.name):
                    return f"{holder} has not ended"
            for conflict in self.model.conflicts:
                found = self.results.get(conflict.name)
                if found != conflict.result:
                    return f"{conflict}: the service says {found}"
            for seal in self.model.seals:
                info = self.client.call(Show, seal=self.ids[seal.name]).seal
                found = (info.state, info.seqid, info.range.offset // UNIT, info.range.end // UNIT)
                if found != (seal.state, seal.seqid, seal.start, seal.end):
                    return f"{seal}: the service says {found}, {info.reason}, {info.ladder}"
                if seal.state == "fencing" and not self.agrees(seal.deadline, info.deadline_in):
                    return f"{seal}: the service's deadline is in {info.deadline_in}"
            return ""

        @property
        def results(self) -> dict[int, str]:
            return self.__dict__.setdefault("_results", {})

        def hear(self) -> None:
            for _ in range(len(self.asked)):
                try:
                    message, _ = self.intruders._next(time.monotonic())
                except TimeoutError:
                    return
                assert not isinstance(message, Failure), message
                result = message.result.result  # type: ignore[union-attr]
                name = self.asked.pop(message.id).name  # type: ignore[arg-type,union-attr]
                self.results[name] = result["errno"] or "passed"

        # What may happen

        @rule(
            file=st.sampled_from(FILES),
            who=numbers,
            span=spans,
            kind=st.sampled_from(["shared", "shared", "shared", "exclusive"]),
            conflict=st.sampled_from(["wait", "wait", "refuse"]),
            fence=st.sampled_from(["none", "signal", "kill"]),
            grace=st.sampled_from([1000.0, 2000.0]),
            ttl=st.sampled_from([0.0, 0.0, 1500.0, 2500.0]),
        )
        def grant(self, file: str, who: int, span: tuple[int, int], **terms: Any) -> None:
            alive = [holder for holder in self.holders if holder.alive]
            if not alive:
                self.hire(bool(who % 2))
                alive = self.holders[-1:]
            holder = alive[who % len(alive)]
            seal = reference.Seal(next(self.names), file, holder, *span, **terms)

            def ask() -> None:
                reply = self.client.grant(
                    path=file, offset=span[0] * UNIT, length=(span[1] - span[0]) * UNIT,
                    holder={"pid": holder.name}, **terms,
                )  # fmt: skip
                for fd in reply.fds:
                    os.close(fd)
                self.ids[seal.name] = reply.seal.id

            self.both(ask, lambda: self.model.grant(seal))

        @rule(file=st.sampled_from(FILES), who=numbers, on=st.booleans())
        def map(self, file: str, who: int, on: bool) -> None:
            anybody = [*self.holders, self.heir]
            process = anybody[who % len(anybody)]
            if on and not process.alive:
                return
            self.simulate("map" if on else "unmap", path=file, pid=process.name)
            (self.model.map if on else self.model.unmap)(file, process)
            self.compare()

        @precondition(lambda self: self.model.seals)
        @rule(which=numbers)
        def validate(self, which: int) -> None:
            seal = self.seal(which)
            self.both(self.own(Mapped, seal), lambda: self.model.validate(seal))

        @precondition(lambda self: self.model.seals)
        @rule(which=numbers, grace=st.sampled_from([None, 500.0]))
        def recall(self, which: int, grace: float | None) -> None:
            seal = self.seal(which)
            ask = self.own(RecallSeals, seal, grace=grace)
            self.both(ask, lambda: self.model.recall(seal, None, grace))

        @precondition(lambda self: self.model.seals)
        @rule(which=numbers)
        def progress(self, which: int) -> None:
            seal = self.seal(which)
            self.both(self.own(RecallProgress, seal), lambda: self.model.progress(seal))

        @precondition(lambda self: self.model.seals)
        @rule(which=numbers)
        def give_back(self, which: int) -> None:
            seal = self.seal(which)
            self.both(self.own(Return, seal), lambda: self.model.give_back(seal))

        @precondition(lambda self: self.model.seals)
        @rule(which=numbers, at_start=st.booleans())
        def give_back_part(self, which: int, at_start: bool) -> None:
            seal = self.seal(which)
            if seal.end - seal.start < 2:
                return
            part = (seal.start, seal.start + 1) if at_start else (seal.end - 1, seal.end)
            ask = self.own(Return, seal, range=ByteRange(part[0] * UNIT, UNIT))
            self.both(ask, lambda: self.model.give_back(seal, part))

        @precondition(lambda self: self.model.seals)
        @rule(which=numbers)
        def forget(self, which: int) -> None:
            seal = self.seal(which)
            if self.model._left(seal):
                return  # the service goes on looking: a fact of its own, tested elsewhere
            self.both(self.own(Forgotten, seal), lambda: self.model.forgotten(seal))

        @precondition(lambda self: self.model.seals)
        @rule(which=numbers)
        def renew(self, which: int) -> None:
            seal = self.seal(which)
            self.both(self.own(Renew, seal, ttl=1500.0), lambda: self.model.renew(seal, 1500.0))

        @precondition(lambda self: any(s.live for s in self.model.seals))
        @rule(which=numbers)
        def downgrade(self, which: int) -> None:
            live = [seal for seal in self.model.seals if seal.live]
            seal = live[which % len(live)]
            if self.__dict__.setdefault("read", set()) & {seal.name} or not seal.holder.alive:
                return
            maps = seal.holder in self.model.maps.get(seal.file, set())
            if seal.state in ("granted", "active", "recalled") and not maps:
                self.__dict__["read"].add(seal.name)
            self.both(self.own(Downgrade, seal), lambda: self.model.downgrade(seal))

        @rule(file=st.sampled_from(FILES), span=spans)
        def conflict(self, file: str, span: tuple[int, int]) -> None:
            conflict = reference.Conflict(next(self.names), file, *span)
            request = self.intruders.send(
                Simulate, action="conflict", path=file, offset=span[0] * UNIT,
                length=(span[1] - span[0]) * UNIT, pid=STRANGER,
            )  # fmt: skip
            self.asked[request] = conflict
            self.model.begin_conflict(conflict)
            self.compare()

        @rule(who=numbers)
        def end(self, who: int) -> None:
            holder = self.holders[who % len(self.holders)]
            if holder.alive:
                os.kill(holder.name, signal.SIGKILL)
                self.model.end_holder(holder)
                self.compare()

        @rule(file=st.sampled_from(FILES))
        def drift(self, file: str) -> None:
            if any(not seal.drifted for seal in self.model.of_file(file)):
                self.simulate("drift", path=file, offset=0)
                self.client.call(Audit)
                self.model.drift(file)
                self.compare()

        @rule(seconds=st.sampled_from([100.0, 600.0, 1100.0, 5000.0]))
        def advance(self, seconds: float) -> None:
            """Moment by moment: what follows from one thing counts from then on. Not into one that
            may go either way."""
            end = self.model.now + seconds
            while (due := self.model.next_due()) is not None and due <= end:
                moment = max(self.model.now, due) + reference.MARGIN
                if self.model.is_open(moment):
                    return
                self.move(moment - self.model.now)
            if self.model.now < end:
                self.move(end - self.model.now)

        def move(self, seconds: float) -> None:
            self.simulate("clock", seconds=seconds)
            self.model.advance(seconds)
            self.compare()

        def teardown(self) -> None:
            self.client.close()
            self.intruders.close()
            self.service.stop()
            for process in self.processes.values():
                process.kill()
                process.communicate()
            clock._ahead = 0.0
            clock.look_for_jumps()

    return Life


def test_the_service_lives_as_the_model_does(tmp_path: Path) -> None:
    run_machine(
        machine_for(tmp_path),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
