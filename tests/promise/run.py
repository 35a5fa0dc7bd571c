"""One run: epochs of files, seals and attackers; a look at every sealed block after each window."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.enforce import overlay_mounts
from sealsvc.protocol.seals import Recall
from sealsvc.runtime import config
from tests.lab.pmem import mounted_dax
from tests.promise import layout
from tests.promise.attack import FILE_BYTES, FILES, WORKERS, Attack
from tests.promise.layout import Plan
from tests.promise.seals import Broken, Held, RingFiles, grant
from tests.support.scratch import MiB, mounted
from tests.support.service import Running

WINDOW, WINDOWS = 400, 10  # operations of a worker between two checks, and checks of an epoch
STUCK = 300.0  # seconds for a window: more is a defect of somebody's
NOBODY = 65534
BLOCKS = 6  # stored into by each check, beside the edges

# All but what the service prevents where it is not accepted.
ACCEPTED = f"accept_risks = {sorted(config.RISKS - {'all', overlay_mounts.RISK})}\n"


@dataclass
class Violation:
    """What broke, and the operations since the seals of the epoch were granted."""

    what: str
    plans: list[Plan]
    records: list[str]
    seed: int = 0
    epoch: int = 0
    fs: str = ""
    reflink: int = 0
    operations: list[str] = field(default_factory=list)  # that the service says were let through


@dataclass
class Place:
    """A file system under test, and the service that keeps it."""

    fs: str
    reflink: int
    mount: Path
    image: Path
    socket: str
    log: Path


@contextmanager
def place(fs: str, reflink: int, directory: Path, pmem: str = "") -> Iterator[Place]:
    """A new file system on a loop device, or with DAX on this device, and a service."""
    with ExitStack() as stack:
        if pmem:
            dax = mounted_dax(fs, reflink=bool(reflink), exchange=fs == "xfs", device=pmem)
            mount, image = stack.enter_context(dax), Path(pmem)
        else:
            arguments = ["-m", f"reflink={reflink}"] if fs == "xfs" else []
            mount = stack.enter_context(mounted(fs, 512 * MiB, arguments))
            image = mount.parent / "image"
            os.chmod(mount.parent, 0o755)
        directory.mkdir(exist_ok=True)
        os.chmod(mount, 0o755)
        running = Running(directory, [mount], ACCEPTED)
        running.may_trip = True  # here that is a violation, of which there is more to tell
        running.start()
        try:
            running.ready()
            yield Place(fs, reflink, mount, image, str(running.socket), running.log)
        finally:
            running.end()


class Epoch:
    """Files of a directory of their own, and the seals on them."""

    def __init__(self, where: Place, number: int, plans: Sequence[Plan], seed: str) -> None:
        self.place, self.plans, self.seed = where, plans, seed
        self.chance = random.Random(f"{seed} {number}")
        self.directory = where.mount / f"e{number}"
        self.client = Client(where.socket, timeout=STUCK)
        self.rings = RingFiles(where.socket)
        self.held: dict[int, Held] = {}
        self.counts: Counter[str] = Counter()
        self.risks: set[str] = set()
        self._read = where.log.stat().st_size  # of the service's log
        self._make()

    def _make(self) -> None:
        where = self.place.mount
        self.directory.mkdir()
        for worker in range(WORKERS):
            over = where / f"over{worker}"
            for name in ("low", "work", "merged"):
                (over / name).mkdir(parents=True, exist_ok=True)
                os.chown(over / name, NOBODY, NOBODY)
        for file in range(FILES):
            path = self.path(file)
            if file == layout.CORE:  # of one name, as the kernel wants it
                for name in ("f", "h"):
                    (self.directory / f"{name}{file}").symlink_to("core")
            with path.open("wb") as made:
                made.write(os.urandom(FILE_BYTES))
                made.flush()
                os.fsync(made.fileno())
            os.chmod(path, 0o666)
            os.chown(path, NOBODY, NOBODY)
            if file != layout.CORE:
                os.link(path, self.directory / f"h{file}")
        os.mkfifo(self.directory / "fifo")
        os.chmod(self.directory / "fifo", 0o666)
        os.chown(self.directory, NOBODY, NOBODY)

    def path(self, file: int) -> Path:
        return self.directory / ("core" if file == layout.CORE else f"f{file}")

    def seal_all(self) -> None:
        for plan in self.plans:
            if plan.file not in self.held:
                self.seal(plan)

    def seal(self, plan: Plan) -> None:
        path, image = self.path(plan.file), self.place.image
        seed = f"{self.seed} {plan.file}"
        try:
            self._refill(path)
            if plan.by == "ring":
                self.held[plan.file] = self.rings.grant(plan, path, image, seed)
            else:
                held = self.held[plan.file] = grant(self.client, plan, path, image, seed)
                self.risks |= set(held.bond.risks)
            self.counts[f"granted: f{plan.file} {plan.kind} {plan.conflict} {plan.by}"] += 1
        except Refusal as refusal:
            self.counts[f"not granted: {refusal.code}"] += 1
        except OSError as error:
            self.counts[f"not granted: {plan.by}: {error.strerror}"] += 1
            if plan.by == "ring":
                with suppress(OSError):
                    self.rings.forget(plan.file)

    def _refill(self, path: Path) -> None:
        """What attackers cut off or punched while nothing was sealed."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size < FILE_BYTES:
                os.truncate(fd, FILE_BYTES)
        finally:
            os.close(fd)

    def listen(self) -> None:
        """Give back what is recalled, at once, as a good holder does. Raises Broken."""
        for push in self.client.pushes(0):
            if isinstance(push, Recall):
                if push.changed:
                    raise Broken(f"the service says so: {push.reason}")
                for held in tuple(self.held.values()):
                    if held.bond.seal_id == push.seal:
                        self._return(held)
        for news in self.rings.ring.dispatch():
            if news.kind == "lost":
                raise Broken(f"the service says that file {news.file} of the ring is lost")
            for held in tuple(self.held.values()):
                if held.plan.by != "ring" or self.rings.files.get(held.plan.file) != news.file:
                    continue
                if news.kind == "recall":
                    self._return(held)
                    if news.slot is None:
                        self.rings.forget(held.plan.file)

    def _return(self, held: Held) -> None:
        del self.held[held.plan.file]
        self.counts["recalls"] += 1
        try:
            held.check(2) if self.chance.random() < 0.3 else held.look()
        except Broken as broken:
            raise Broken(f"{held.plan}: before its return, {broken}") from None
        finally:
            held.give_back()
        if self.chance.random() < 0.5:
            self.seal(held.plan)

    def check(self, blocks: int) -> None:
        """Raises Broken."""
        self._listen_for_trips()
        for held in self.held.values():
            try:
                held.check(blocks)
            except Broken as broken:
                raise Broken(f"{held.plan}: {broken}") from None
            self.counts["checks"] += 1

    def _listen_for_trips(self) -> None:
        """The service's own tripwire saw something that we did not."""
        with self.place.log.open() as log:
            log.seek(self._read)
            said = log.read()
        self._read += len(said.encode())
        tripped = [line for line in said.splitlines() if "tripwire:" in line]
        if tripped:
            raise Broken(f"the service says: {tripped[0]}")

    def close(self) -> None:
        with ExitStack() as stack:
            stack.callback(_remove, self.directory)
            stack.callback(self.client.close)
            stack.callback(self.rings.close)
            for file in tuple(self.rings.files):
                stack.callback(self.rings.forget, file)
            for held in self.held.values():
                stack.callback(held.give_back)


def _remove(directory: Path) -> None:
    for path in directory.iterdir():
        with suppress(OSError):
            path.unlink()
    shutil.rmtree(directory, ignore_errors=True)


class Fuzz:
    """Operations of one seed on one file system, until there are enough of them, or time is up."""

    def __init__(
        self,
        where: Place,
        seed: int,
        workers: int = 3,
        privileged: int = 0b100,
        without: Sequence[str] = (),
    ) -> None:
        self.place, self.seed, self.without = where, seed, without
        self.workers, self.privileged = workers, privileged
        self.counts: Counter[str] = Counter()
        self.violations: list[Violation] = []
        self.operations = 0

    def run(self, operations: int, seconds: float, violations: int = 1) -> None:
        deadline = time.monotonic() + seconds
        with Attack(self.seed, self.place.fs, self.workers, self.privileged) as attack:
            attack.leave_out(self.without)
            epoch = 0
            while self.operations < operations and time.monotonic() < deadline:
                epoch += 1
                self._epoch(attack, epoch, min(operations - self.operations, 10**9), deadline)
                if len(self.violations) >= violations:
                    break
            self.counts += attack.counts()

    def _epoch(self, attack: Attack, number: int, most: int, deadline: float) -> None:
        plans = layout.plan(self.seed, number)
        first = number * WINDOW * WINDOWS
        made = Epoch(self.place, number, plans, str(self.seed))
        try:
            open_all(attack, number, first, made)
            until = first
            # The first is always made: on a slow machine there may be no time for it.
            while until == first or (
                until < first + WINDOW * WINDOWS and time.monotonic() < deadline
            ):
                until += WINDOW
                try:
                    made.seal_all()
                    window(attack, until, made)
                    made.check(BLOCKS)
                except Broken as broken:
                    self._report(attack, made, number, first, str(broken))
                    return
                finally:
                    self.operations += WINDOW * self.workers
                if (until - first) * self.workers >= most:
                    break
        finally:
            attack.end()
            made.close()
            self.counts += made.counts

    def _report(self, attack: Attack, made: Epoch, number: int, first: int, what: str) -> None:
        last = [min(at, first + WINDOW * WINDOWS - 1) for at in attack.progress]
        order = attack.order(first, last)
        self.violations.append(
            Violation(
                what,
                list(made.plans),
                attack.describe(order),
                self.seed,
                number,
                self.place.fs,
                self.place.reflink,
            )
        )


def open_all(attack: Attack, number: int, first: int, made: Epoch) -> None:
    attack.begin(number, first, made.directory, layout.targets(list(made.plans)))
    _until(lambda: attack.opened(number), attack, "the workers do not open the files")
    made.seal_all()
    attack.risks(sorted(made.risks))


def window(attack: Attack, until: int, made: Epoch) -> None:
    """Let everybody come to `until`. Raises Broken."""
    attack.advance(until)
    deadline = time.monotonic() + STUCK
    while not attack.done:
        made.listen()
        if not attack.alive:
            raise RuntimeError("the attacking program ended")
        if time.monotonic() > deadline:
            raise RuntimeError(f"stuck at {attack.progress} of {until}")
        time.sleep(0.0005)
    made.listen()


def _until(condition: object, attack: Attack, what: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + STUCK
    while not condition():
        if not attack.alive or time.monotonic() > deadline:
            raise RuntimeError(what)
        time.sleep(0.001)
