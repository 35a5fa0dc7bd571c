"""The real thing beside the model: a file system, the service, an actor, and us, a holder."""

from __future__ import annotations

import mmap
import os
import pickle
import select
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import JobInfo, ShowJob
from sealsvc.protocol.copies import StartCopy
from sealsvc.protocol.relocation import Goal, Quiesce, Relocate
from sealsvc.protocol.seals import Recall, RecallSeals, Reclaim, Return, Show
from tests.model.actor import look
from tests.model.fiemap import places
from tests.model.operations import BLOCK, FILES, Operation
from tests.model.world import Seal
from tests.support.scratch import MiB, mounted
from tests.support.service import RISKS, ROOT, Running
from tests.support.waiting import PATIENCE

BUSY = 30.0  # seconds for which a grant that is put off is tried again
PAUSE = 0.003  # seconds for which an operation that must wait is seen to wait


class Difference(Exception):
    """The real thing did what the model did not say."""


class MutantService(Running):
    """The service with a fault in it, which the model must find (mutants.py)."""

    def __init__(self, directory: Path, roots: list[Path], more: str, mutation: str) -> None:
        super().__init__(directory, roots, more)
        self.mutation = mutation

    def start(self) -> None:
        if not self.mutation:
            super().start()
            return
        self.socket.unlink(missing_ok=True)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.model.mutants", self.mutation, self.config],
                cwd=ROOT,
                stderr=log,
            )


@dataclass(slots=True)
class Held:
    """A seal of ours as the service knows it. `map` is where its blocks are to be."""

    seal: Seal
    id: str
    fd: int
    map: dict[int, int]


@contextmanager
def system(filesystem: str, reflink: bool, directory: Path, mutation: str = "") -> Iterator[System]:
    arguments = ["-m", f"reflink={int(reflink)}"] if filesystem == "xfs" else []
    with mounted(filesystem, 512 * MiB, arguments) as mount:
        running = MutantService(directory, [mount], RISKS, mutation)
        running.may_trip = bool(mutation)
        running.start()
        try:
            running.ready()
            made = System(running, mount)
            try:
                yield made
            finally:
                made.end()
        finally:
            running.end()


class System:
    def __init__(self, running: Running, mount: Path) -> None:
        self.running, self.mount = running, mount
        self.held: dict[int, Held] = {}
        self.client = Client(str(running.socket), timeout=PATIENCE)
        self._runs = 0
        self._recalled: set[str] = set()
        self._actor: subprocess.Popen[bytes] | None = None
        self.directory = mount

    def begin(self) -> None:
        """New, empty files, and an actor for them."""
        self.end_run()
        self._runs += 1
        self.directory = self.mount / f"run{self._runs}"
        self.directory.mkdir()
        for file in range(FILES):
            self.path(file).touch()
        command = [sys.executable, "-m", "tests.model.actor", str(self.directory)]
        self._actor = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def end_run(self) -> None:
        """Whatever is sealed is let go first: the actor may wait for it."""
        if self.running.process is not None and self.running.process.poll() is not None:
            self.start()
        for number in list(self.held):
            with suppress(Refusal):
                self.give_back(number)
        if self._actor is not None:
            assert self._actor.stdin is not None
            assert self._actor.stdout is not None
            with suppress(BrokenPipeError):
                self._actor.stdin.close()
            self._actor.stdout.close()
            self._actor.wait(PATIENCE)
            self._actor = None
            for file in range(FILES):
                self.path(file).unlink(missing_ok=True)

    def end(self) -> None:
        self.end_run()
        self.client.close()

    def path(self, file: int) -> Path:
        return self.directory / f"f{file}"

    # The actor

    def send(self, operations: Sequence[Operation]) -> None:
        assert self._actor is not None
        assert self._actor.stdin is not None
        pickle.dump(list(operations), self._actor.stdin)
        self._actor.stdin.flush()

    def answers(self) -> list[Any]:
        if not self.answered(PATIENCE):
            raise Difference("the operation does not come back, and nothing holds it")
        assert self._actor is not None
        assert self._actor.stdout is not None
        found: list[Any] = pickle.load(self._actor.stdout)
        return found

    def answered(self, seconds: float) -> bool:
        assert self._actor is not None
        assert self._actor.stdout is not None
        return bool(select.select([self._actor.stdout], [], [], seconds)[0])

    # Seals

    def grant(self, **terms: Any) -> tuple[str, int]:
        """The id of the seal, and the sealed descriptor. A grant may have to wait a little for what
        is under way on its file, or while very many processes start (try-later)."""
        deadline = time.monotonic() + BUSY
        while True:
            try:
                reply = self.client.grant(**terms)
                return reply.seal.id, reply.fds[0]
            except Refusal as refusal:
                if refusal.code != "try-later" or time.monotonic() > deadline:
                    raise
                time.sleep(refusal.retry_after or 0.05)

    def hold(self, seal: Seal, id: str, fd: int) -> None:
        self.held[seal.number] = Held(seal, id, fd, places(fd, seal.start, seal.end))

    def store(self, number: int, offset: int, data: bytes) -> None:
        """By the holder, through a mapping of its own."""
        start = offset // BLOCK * BLOCK
        with mmap.mmap(self.held[number].fd, offset + len(data) - start, offset=start) as area:
            area[offset - start : offset - start + len(data)] = data

    def give_back(self, number: int) -> None:
        held = self.held.pop(number)
        os.close(held.fd)
        self._recalled.discard(held.id)
        state = self.client.call(Return, seal=held.id).seal.state
        if state != "returned":
            raise Difference(f"seal {held.id} is {state} after its return")

    def recall(self, number: int) -> None:
        """By an operator: asked for on another connection, since it is we who give it back."""
        held = self.held[number]
        with Client(str(self.running.socket), timeout=PATIENCE) as operator:
            operator.call(RecallSeals, seal=held.id)
        self.expect_recall([number])

    def expect_recall(self, numbers: Collection[int]) -> int:
        """The holder must be asked for one of these seals, before the operation that met them goes
        on: for which?"""
        deadline = time.monotonic() + PATIENCE
        while True:
            for number in numbers:
                if self.held[number].id in self._recalled:
                    return number
            for push in self.client.pushes(0.05):
                if isinstance(push, Recall):
                    self._recalled.add(push.seal)
                    break
            else:
                if time.monotonic() > deadline or self.answered(0):
                    files = sorted({f"f{self.held[number].seal.file}" for number in numbers})
                    raise Difference(f"no seal of {', '.join(files)} is recalled")

    # Jobs of the service

    def relocate(self, file: int, goal: str) -> JobInfo:
        """By an operator; the holder quiesces what it is asked for, and reads its maps again."""
        wanted = Goal(align=1 << 16) if goal == "align" else Goal(defrag=True)
        with Client(str(self.running.socket), timeout=PATIENCE) as operator:
            path = str(self.path(file))
            job = operator.call(Relocate, path=path, goal=wanted, grace=200.0).result
            job = self._ended(operator, job, quiesces=True)
        for held in self.held.values():
            if held.seal.file == file:
                if (state := self.state(held.seal.number)) != "granted":
                    raise Difference(f"after a relocation a seal is {state}")
                held.map = places(held.fd, held.seal.start, held.seal.end)
        return job

    def copy(self, file: int, offset: int, length: int, source: int, other: int) -> JobInfo:
        with ExitStack() as stack:
            fds = []
            for number in (source, file)[source == file :]:
                fds.append(os.open(self.path(number), os.O_RDWR | os.O_CLOEXEC))
                stack.callback(os.close, fds[-1])
            terms = {"offset": other, "length": length, "to": offset}
            job = self.client.call(StartCopy, fds, **terms).result
        return self._ended(self.client, job)

    def _ended(self, client: Client, job: object, *, quiesces: bool = False) -> JobInfo:
        deadline = time.monotonic() + PATIENCE
        while True:
            for push in self.client.pushes(0.01) if quiesces else ():
                if isinstance(push, Recall) and push.quiesce:
                    self.client.call(Quiesce, seal=push.seal)
            assert isinstance(job, JobInfo)
            if job.state != "running":
                return job
            if time.monotonic() > deadline:
                raise Difference(f"{job} does not end")
            time.sleep(0.005)
            job = client.call(ShowJob, job=job.id).result

    def check_maps(self) -> None:
        """No sealed block has moved."""
        for held in self.held.values():
            now = places(held.fd, held.seal.start, held.seal.end)
            if now != held.map:
                moved = {n: (at, now.get(n)) for n, at in held.map.items() if now.get(n) != at}
                raise Difference(f"sealed blocks of f{held.seal.file} moved: {moved or now}")

    def look(self) -> list[tuple[bytes, dict[int, int]]]:
        """Of each file its content and places; of a sealed file by the sealed descriptor."""
        found = {held.seal.file: look(held.fd) for held in self.held.values()}
        others = [file for file in range(FILES) if file not in found]
        self.send([("look", file) for file in others])
        found |= dict(zip(others, self.answers(), strict=True))
        return [found[file] for file in range(FILES)]

    # The service

    def kill(self) -> None:
        self.running.kill()

    def start(self) -> None:
        self.running.start()
        self.running.ready()
        self.client.reconnect(PATIENCE)
        for held in self.held.values():
            self.client.call(Reclaim, seal=held.id)

    def state(self, number: int) -> str:
        return str(self.client.call(Show, seal=self.held[number].id).seal.state)
