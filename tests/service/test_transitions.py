"""Every row of the table in sealsvc/core/states.py, provoked for real: the state, then the step."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.core import states
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, State
from sealsvc.core.states import TRANSITIONS, Step
from sealsvc.doctor import syscalls
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.relocation import Goal, Quiesce, Relocate
from sealsvc.protocol.seals import Downgrade, Forgotten, Mapped, RecallSeals, Renew, Return, Show
from sealsvc.protocol.system import Audit
from tests.service.scripted import Holder, scripted
from tests.support.service import RISKS, serving
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

UNIT = 65536
FENCED = {"fence": "signal", "grace": 0.1}


# What lasts must last on a slow machine as well; what must pass is short.
SERVICES = {
    "courteous": (86400, 0.5),  # courtesy, and the patience of the fence
    "strict": (0, 0.5),
    "patient": (86400, 600),
}


@pytest.fixture(scope="module")
def services(xfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Their sockets."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(
                serving(
                    tmp_path_factory.mktemp(name),
                    [xfs],
                    f"{RISKS}courtesy = {courtesy}\n"
                    f"[fence]\nsignal_grace = {patience}\nproof_timeout = {patience}\n",
                )
            )
            for name, (courtesy, patience) in SERVICES.items()
        }


def _service_for(state: State, step: Step) -> str:
    if step is Step.EXPIRE and state is not State.COURTESY:
        return "strict"
    waits_for_the_fence = step in (Step.ESCALATE, Step.UNPROVEN)
    return "patient" if state is State.FENCING and not waits_for_the_fence else "courteous"


class Scene:
    """A file, its holder, an operator, and what happens to the seal."""

    def __init__(self, socket: str, path: Path, stack: ExitStack) -> None:
        self.socket, self.path, self.stack = socket, path, stack
        self.operator = stack.enter_context(Client(socket, timeout=PATIENCE))
        self._watcher = stack.enter_context(Client(socket))
        self._watcher.call(Watch)
        self.holder: Holder | None = None
        self.taken: list[tuple[str, str, str]] = []

    def grant(self, **fields: Any) -> None:
        self.holder = self.stack.enter_context(
            scripted(self.socket, self.path, offset=0, length=4 * UNIT, **fields)
        )

    @property
    def seal(self) -> str:
        assert self.holder is not None
        return self.holder.seal

    @property
    def own(self) -> Holder:
        assert self.holder is not None
        return self.holder

    def state(self) -> str:
        return str(self.operator.call(Show, seal=self.seal).seal.state)

    def becomes(self, state: State) -> None:
        until(lambda: self.state() == state)

    def punch(self) -> None:
        process = subprocess.Popen(
            ["fallocate", "-p", "-o", "0", "-l", "4096", self.path], stderr=subprocess.DEVNULL
        )
        self.stack.callback(process.communicate)
        self.stack.callback(process.kill)

    def drift(self) -> None:
        """By the one operation that fanotify cannot see."""
        donor = self.path.with_suffix(f".{time.monotonic_ns()}")
        donor.write_bytes(bytes(self.path.stat().st_size))
        with self.path.open("r+b") as a, donor.open("r+b") as b:
            os.fsync(b.fileno())
            syscalls.swap_extents(a.fileno(), b.fileno())
        donor.unlink()
        self.operator.call(Audit)

    def saw(self, state: str, step: str, to: str) -> bool:
        for push in self._watcher.pushes(0.05):
            if isinstance(push, Event) and push.name == "state" and push.seal == self.seal:
                self.taken.append((push.data["from"], push.data["step"], push.data["to"]))
        return (state, step, to) in self.taken


def _granted(scene: Scene, step: Step) -> None:
    scene.grant()
    _ends_soon(scene, step)


def _ends_soon(scene: Scene, step: Step) -> None:
    if step in (Step.LAPSE, Step.EXPIRE):
        scene.operator.call(Renew, seal=scene.seal, ttl=0.05)


def _active(scene: Scene, step: Step) -> None:
    scene.grant()
    scene.own.map()
    scene.operator.call(Mapped, seal=scene.seal)
    _ends_soon(scene, step)


def _courtesy(scene: Scene, step: Step) -> None:
    scene.grant(ttl=0.05)
    scene.becomes(State.COURTESY)


def _recalled(scene: Scene, step: Step) -> None:
    fields: dict[str, Any] = {"grace": 200.0}
    if step is Step.OVERDUE:
        fields = {"grace": 0.1}
    elif step is Step.FENCE:
        fields = FENCED
    elif step is Step.EXPIRE:
        fields |= {"ttl": 5.0}  # it is recalled before
    scene.grant(**fields)
    if step is Step.REMAP:
        goal = Goal(to=str(scene.path.parent))
        scene.operator.call(Relocate, path=str(scene.path), goal=goal, grace=200)
        scene.becomes(State.RECALLED)
        return
    part = ByteRange(3 * UNIT, UNIT) if step is Step.SATISFY else None
    scene.operator.call(RecallSeals, path=str(scene.path), range=part)


def _deaf(scene: Scene, **fields: Any) -> None:
    scene.grant(**{**FENCED, **fields})
    scene.own.map()
    scene.own.do("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    scene.operator.call(RecallSeals, seal=scene.seal)


def _fencing(scene: Scene, step: Step) -> None:
    _deaf(scene, fence="kill" if step is Step.ESCALATE else "signal")
    if step not in (Step.ESCALATE, Step.UNPROVEN):
        scene.becomes(State.FENCING)


def _fence_failed(scene: Scene, step: Step) -> None:
    _deaf(scene)
    scene.becomes(State.FENCE_FAILED)


def _orphaned(scene: Scene, step: Step) -> None:
    scene.grant(grace=0.1)
    scene.stack.callback(_kill, scene.own.leave_a_child())
    scene.own.kill()
    scene.becomes(State.ORPHANED)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _lost(scene: Scene, step: Step) -> None:
    scene.grant(**{Step.FENCE: FENCED, Step.OVERDUE: {"grace": 0.1}}.get(step, {"grace": 200.0}))
    scene.drift()


REACH: dict[State, Callable[[Scene, Step], None]] = {
    State.REQUESTED: lambda scene, step: None,
    State.GRANTED: _granted,
    State.ACTIVE: _active,
    State.COURTESY: _courtesy,
    State.RECALLED: _recalled,
    State.FENCING: _fencing,
    State.FENCE_FAILED: _fence_failed,
    State.ORPHANED: _orphaned,
    State.LOST: _lost,
}


def _return(scene: Scene, state: State) -> None:
    scene.own.let_go()
    assert scene.own.give_back() == "returned"


def _forget(scene: Scene, state: State) -> None:
    scene.own.let_go()
    scene.operator.call(Forgotten, seal=scene.seal)


def _proven(scene: Scene, state: State) -> None:
    if state is State.FENCE_FAILED:
        scene.own.kill()
    elif state is State.ORPHANED:
        scene.stack.close()
    else:
        scene.own.do("signal.signal(signal.SIGTERM, signal.SIG_DFL)")
        scene.own.process.terminate()


def _downgrade(scene: Scene, state: State) -> None:
    scene.own.unmap()
    scene.operator.call(Downgrade, seal=scene.seal)


def _shrink(scene: Scene, state: State) -> None:
    scene.own.unmap()
    assert scene.own.give_back(ByteRange(3 * UNIT, UNIT)) in LIVE_STATES


def _expire(scene: Scene, state: State) -> None:
    if state is State.COURTESY:
        scene.punch()


def _wait(scene: Scene, state: State) -> None:
    """It comes by itself."""


LIVE_STATES = {"granted", "active", "courtesy", "recalled", "lost"}
DO: dict[Step, Callable[[Scene, State], None]] = {
    Step.GRANT: lambda scene, state: scene.grant(),
    Step.VALIDATE: lambda scene, state: (
        scene.own.map(),
        scene.operator.call(Mapped, seal=scene.seal),
    )[0],
    Step.RENEW: lambda scene, state: scene.operator.call(Renew, seal=scene.seal, ttl=60) and None,
    Step.DOWNGRADE: _downgrade,
    Step.SHRINK: _shrink,
    Step.LAPSE: _wait,
    Step.RECALL: lambda scene, state: scene.punch(),
    Step.SATISFY: _shrink,
    Step.REMAP: lambda scene, state: scene.operator.call(Quiesce, seal=scene.seal) and None,
    Step.OVERDUE: lambda scene, state: scene.punch() if state is State.ORPHANED else None,
    Step.RETURN: _return,
    Step.FORGET: _forget,
    Step.FENCE: _wait,
    Step.ESCALATE: _wait,
    Step.PROVEN: _proven,
    Step.UNPROVEN: _wait,
    Step.EXPIRE: _expire,
    Step.HOLDER_EXIT: lambda scene, state: scene.own.kill(),
    Step.DRIFT: lambda scene, state: scene.drift(),
}


@pytest.mark.parametrize(
    ("state", "step"), list(TRANSITIONS), ids=[f"{state}-{step}" for state, step in TRANSITIONS]
)
def test_the_transition_happens(
    services: dict[str, str], xfs: Path, state: State, step: Step
) -> None:
    socket = services[_service_for(state, step)]
    path = xfs / f"transition-{os.getpid()}-{threading.get_native_id()}"
    path.write_bytes(os.urandom(8 * UNIT))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    try:
        with ExitStack() as watch, ExitStack() as stack:
            scene = Scene(socket, path, watch)
            scene.stack = stack
            REACH[state](scene, step)
            if step is not Step.GRANT:
                DO[step](scene, state)
                to = TRANSITIONS[state, step].to
                until(lambda: scene.saw(state, step, to))
            else:
                DO[step](scene, state)
                assert scene.state() == "granted"
            seal = scene.seal
        with Client(socket) as client:
            until(lambda: _over(client, seal))
    finally:
        path.unlink()


def _over(client: Client, seal: str) -> bool:
    """However far it came: once its holder and what it left are gone, so is the seal."""
    with suppress(Refusal):
        client.call(Return, seal=seal)
    return client.call(Show, seal=seal).seal.state in ("returned", "revoked", "expired")


def test_the_page_shows_the_table_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs/states.md").read_text()
    assert states.table() in page, (
        "run: python -m sealsvc.core.states, and put it into docs/states.md"
    )
