"""One soak: the service on scratch file systems, everybody who meets it, and what is left of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import List, RecallSeals, Return
from sealsvc.protocol.system import Audit, Status
from tests.soak.intruder import UNIT, UNITS
from tests.soak.leaks import Footprint, differences, files, footprint, locks
from tests.soak.stats import total
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE

HOLDERS, INTRUDERS, FILES = 4, 3, 4  # files and intruders of each file system
WORKERS = 8
SPARE_THREADS = 4  # beside the workers: the event loop, the watch of mounts, and libraries'
DAEMON_GROWTH, KEEPER_GROWTH = 24 * 1024, 4 * 1024  # KiB
SETTLED = 120.0  # seconds, in which what is over has to be let go
LAST_LIFE = 0.3  # of the time: the last service lives that long, to have time to leak


@dataclass
class Result:
    seed: int
    seconds: float
    counts: Counter[str] = field(default_factory=Counter)
    drift: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    observer: dict[str, int] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not (self.drift or self.leaks or self.trouble)


@dataclass
class Child:
    process: subprocess.Popen[bytes]
    name: str


class Soak:
    def __init__(self, seed: int, seconds: float, roots: list[Path], directory: Path) -> None:
        self.chance = random.Random(seed)
        self.roots, self.directory = roots, directory
        self.running = Running(directory, roots, RISKS + "[fence]\nsignal_grace = 1.0\n")
        self.result = Result(seed, seconds)
        self.files = [root / f"file-{n}" for root in roots for n in range(FILES)]
        self.holders: list[Child] = []
        self.intruders: list[Child] = []
        self.numbers = iter(range(10**9))
        self.rss: dict[int, int] = {}
        self.started = 0.0
        self.machine: Counter[str] = Counter()  # the service's counters, when they were last read

    # Processes

    def spawn(self, module: str, *arguments: object) -> Child:
        number = next(self.numbers)
        name = f"{module}-{number}"
        log = (self.directory / "children.log").open("ab")
        with log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", f"tests.soak.{module}"),
                    *(f"{self.result.seed}-{number}", self.directory, name),
                    *(str(argument) for argument in arguments),
                ],
                stdin=subprocess.PIPE,
                stderr=log,
            )
        return Child(process, name)

    def new_holder(self) -> Child:
        return self.spawn(
            "holder", self.running.socket, self.directory / "observer.sock", *self.files
        )

    def new_intruder(self, root: Path) -> Child:
        return self.spawn("intruder", *(file for file in self.files if file.parent == root))

    @contextmanager
    def observing(self) -> Iterator[None]:
        observer = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.soak.observer"),
                *(self.directory / "observer.sock", self.directory),
            ],
            stdout=subprocess.PIPE,
        )
        try:
            assert observer.stdout
            observer.stdout.readline()
            yield
            observer.terminate()
            if observer.wait(PATIENCE):
                self.result.trouble.append("the observer failed")
        finally:
            observer.kill()
            observer.communicate()

    def end_all(self) -> None:
        for child in (*self.holders, *self.intruders):
            child.process.kill()
            child.process.communicate()

    # The run

    def run(self) -> None:
        for file in self.files:
            file.write_bytes(os.urandom(UNITS * UNIT))
        os.sync()
        with ExitStack() as stack:
            stack.callback(self.end_running)
            self.start()
            self.warm_up()
            before = self.footprints()
            stack.enter_context(self.observing())
            stack.callback(self.end_all)
            self.holders = [self.new_holder() for _ in range(HOLDERS)]
            self.intruders = [self.new_intruder(r) for r in self.roots for _ in range(INTRUDERS)]
            began = time.monotonic()
            while (elapsed := time.monotonic() - began) < self.result.seconds:
                time.sleep(self.chance.random() * 0.4)
                self.one(elapsed / self.result.seconds < 1 - LAST_LIFE)
            self.wind_down()
            self.compare(before)

    def one(self, may_kill: bool) -> None:
        """Something that an operator, or fate, does."""
        self.respawn()
        assert self.running.process
        if self.running.process.poll() is not None:
            self.result.trouble.append(f"the service ended: {self.running.process.returncode}")
            self.start()
        chance = self.chance.random()
        if may_kill and chance < 0.12:
            self.kill_service()
        elif chance < 0.2:
            self.result.counts["holders killed"] += 1
            self.chance.choice(self.holders).process.kill()
        elif chance < 0.4:
            self.operate(self.audit)
        elif chance < 0.6:
            self.operate(self.recall)
        elif chance < 0.7:
            self.operate(self.note)

    def respawn(self) -> None:
        for n, child in enumerate(self.holders):
            if child.process.poll() is not None:
                self.reap(child)
                self.holders[n] = self.new_holder()
        for child in self.intruders:
            if child.process.poll() is not None:
                raise AssertionError(f"{child.name} ended: {child.process.returncode}")

    def reap(self, child: Child) -> None:
        """Fenced, killed, or dead of itself: all of that is legal, an exception is not."""
        status = child.process.returncode
        child.process.communicate()
        self.result.counts[f"holders that ended with {status}"] += 1
        if status not in (0, -9, -15):
            self.result.trouble.append(f"{child.name} ended with {status}")

    def start(self) -> None:
        self.running.start()
        self.running.ready()
        self.started = time.monotonic()
        self.rss.clear()
        self.machine.clear()

    def kill_service(self) -> None:
        self.operate(self.note)
        self.result.counts["kills of the service"] += 1
        self.running.kill()
        time.sleep(self.chance.choice([0.0, 0.0, 0.3, 1.0]))
        if self.chance.random() < 0.2:  # in the middle of its start, too
            self.result.counts["kills of a starting service"] += 1
            self.running.start()
            time.sleep(self.chance.random() * 0.5)
            self.running.kill()
        self.start()

    # An operator

    def operate(self, act: Callable[[Client], None]) -> None:
        try:
            with Client(str(self.running.socket), timeout=PATIENCE) as client:
                act(client)
        except Refusal as refusal:
            if refusal.code not in ("no-such-file", "no-such-seal"):
                self.result.trouble.append(f"{act.__name__}: {refusal}")
        except TimeoutError as error:
            self.result.trouble.append(f"{act.__name__}: {error}")

    def audit(self, client: Client) -> None:
        report = client.call(Audit).result
        self.result.counts["audits"] += 1
        self.result.counts["maps audited"] += report.checked
        self.result.drift += [f"the service's audit: {drift}" for drift in report.drifted]

    def recall(self, client: Client) -> None:
        seals = client.call(List).result.seals
        if not seals:
            return
        seal = self.chance.choice(seals)
        scope, value = self.chance.choice(
            [
                *[("seal", seal.id), ("path", str(self.chance.choice(self.files)))] * 3,
                *[("pid", seal.holder.pid), ("filesystem", str(self.chance.choice(self.roots)))],
                ("all", True),
            ]
        )
        client.call(RecallSeals, grace=self.chance.choice([0.5, 2.0]), **{scope: value})
        self.result.counts[f"recalls of an operator: {scope}"] += 1

    def note(self, client: Client) -> None:
        """The counters end with the service: what came since they were read last."""
        now = Counter(client.call(Status).result.counters)
        for name, count in (now - self.machine).items():
            self.result.counts[f"the service's {name}"] += count
        self.machine = now
        assert self.running.process
        if not self.rss and time.monotonic() - self.started > 3:
            self.rss = {pid: footprint(pid).rss for pid in self.pids()}

    # Before and after

    def warm_up(self) -> None:
        """Every worker has worked, every file system is armed, what is cached is cached."""
        with Client(str(self.running.socket), timeout=PATIENCE) as client:
            for file in self.files * 4:
                reply = client.grant(path=str(file), kind="shared")
                os.close(reply.fds[0])
                client.call(Return, seal=reply.seal.id)
        time.sleep(3.0)  # longer than a file lingers

    def pids(self) -> tuple[int, int]:
        """The service and its keeper."""
        assert self.running.process
        path = str(self.running.directory / "keeper.sock")
        found = psutil.process_iter(["cmdline"])
        keeper = next(p.pid for p in found if path in (p.info["cmdline"] or []))
        return self.running.process.pid, keeper

    def footprints(self) -> tuple[Footprint, Footprint]:
        service, keeper = self.pids()
        return footprint(service), footprint(keeper)

    def wind_down(self) -> None:
        """Intruders first, then the holders, who return what they have."""
        for child in self.intruders:
            child.process.terminate()
        for child in self.intruders:
            if not self.ends(child, PATIENCE):
                self.result.trouble.append(f"{child.name} is stuck in its operation")
        for child in self.holders:
            assert child.process.stdin
            child.process.stdin.close()
            child.process.stdin = None
        for child in self.holders:
            if self.ends(child, PATIENCE):
                self.reap(child)
            else:
                self.result.trouble.append(f"{child.name} does not end")
        self.operate(self.note)
        self.operate(self.audit)

    def ends(self, child: Child, seconds: float) -> bool:
        try:
            child.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def compare(self, before: tuple[Footprint, Footprint]) -> None:
        """All is let go, in a while."""
        deadline = time.monotonic() + SETTLED
        while (left := self.left(before)) and time.monotonic() < deadline:
            time.sleep(0.3)
        self.result.leaks = left

    def left(self, before: tuple[Footprint, Footprint]) -> list[str]:
        with Client(str(self.running.socket), timeout=PATIENCE) as client:
            seals = client.call(List).result.seals
            status = client.call(Status).result
        found = [f"seal {s.id} of {s.holder.pid}: {s.state}, {s.reason}" for s in seals]
        if status.conflicts_waiting:
            found.append(f"{status.conflicts_waiting} conflicts wait, as it believes")
        devices = {root.stat().st_dev for root in self.roots}
        found += [f"lock: {line}" for line in locks(devices)]
        service, keeper = self.footprints()
        if service.descriptors.get("file", 0) > before[0].descriptors.get("file", 0):
            found.append(f"service: open: {files(self.pids()[0])}")
        growth = self.growth(before, (service, keeper))
        threads = WORKERS + SPARE_THREADS
        found += [f"service: {d}" for d in differences(before[0], service, threads, 1 << 40)]
        found += [f"keeper: {d}" for d in differences(before[1], keeper, 0, 1 << 40)]
        return found + growth

    def growth(
        self, before: tuple[Footprint, Footprint], now: tuple[Footprint, Footprint]
    ) -> list[str]:
        """Since each was warm: the keeper at first, the service after its last start."""
        service, _ = self.pids()
        grown = {
            "service": (self.rss.get(service, now[0].rss), now[0].rss, DAEMON_GROWTH),
            "keeper": (before[1].rss, now[1].rss, KEEPER_GROWTH),
        }
        for name, (first, last, _) in grown.items():
            self.result.counts[f"{name}'s KiB at first"] = first
            self.result.counts[f"{name}'s KiB at last"] = last
        return [
            f"{name}: memory: {first} KiB became {last} KiB"
            for name, (first, last, room) in grown.items()
            if last > first + room
        ]

    def end_running(self) -> None:
        try:
            self.running.end()
        except AssertionError as error:
            self.result.trouble.append(f"its end, or its log: {str(error)[-2000:]}")


def soak(seed: int, seconds: float) -> Result:
    with ExitStack() as stack:
        xfs = stack.enter_context(mounted("xfs", mkfs_args=["-m", "reflink=1"]))
        ext4 = stack.enter_context(mounted("ext4"))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealsvc-soak-")))
        made = Soak(seed, seconds, [xfs, ext4], directory)
        result = made.result
        try:
            made.run()
        except (AssertionError, OSError, Refusal) as error:
            result.trouble.append(f"cut short: {error!r}"[-3000:])
        result.counts.update(total(directory))
        for name, into in (("drift.log", result.drift), ("trouble.log", result.trouble)):
            if (log := directory / name).exists():
                into += log.read_text().splitlines()
        said = (directory / "children.log").read_text()
        if said:
            result.trouble.append(f"children said: {said[-3000:]}")
        if (told := directory / "observer.json").exists():
            result.observer = msgspec.json.decode(told.read_bytes(), type=dict[str, int])
        return result
