"""Three unprivileged users attack all at once while others work: how long does their work take?

The attacks are those that each stopped the service once: connections, refused calls, descriptors
whose close is never answered, descriptors of clients that leave at once, waiters, keys of requests,
requests that are none. What is measured: a bystander's read, a grant and return by another user,
and an operator's list. It is measured first without the attack.
"""

from __future__ import annotations

import json
import os
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.linux.processes import peer_of
from sealsvc.protocol.seals import List, Return
from tests.hostile import fuse
from tests.hostile.users import connected, process, sent
from tests.support.service import ROOT, Running

ATTACKERS = (65531, 65532, 65533)
WORKER = 65530
LEAST = 5  # of each operation, however long that takes
PAUSE = 0.02  # seconds between two measured operations
MiB = 1 << 20


def written(path: Path, size: int = MiB) -> Path:
    path.write_bytes(os.urandom(size))
    path.chmod(0o666)
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
    return path


# Attacks: each goes on until its process is killed. Descriptors are opened before, by root.


def many_connections(socket: str, _: int) -> None:
    while True:
        held = []
        with suppress(OSError):
            for _ in range(2000):
                held.append(connected(socket))
        time.sleep(0.5)
        for sock in held:
            sock.close()


def refused_calls(socket: str, mine: int) -> None:
    with Client(socket, timeout=60) as client:
        with suppress(Refusal):
            client.grant(fds=[mine], kind="shared", conflict="refuse")
        while True:
            with suppress(OSError):
                os.ftruncate(mine, 4096)


def waiters(socket: str, mine: int) -> None:
    """A seal that waits, its holder that never answers, and those who wait for it."""
    with Client(socket, timeout=60) as client:
        while True:
            with suppress(Refusal):
                client.grant(fds=[mine], kind="shared", grace=1.0, fence="none")
            children = []
            for _ in range(20):
                if not (child := os.fork()):
                    with suppress(OSError):
                        os.ftruncate(mine, 4096)
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)


def pass_and_leave(socket: str, mine: int) -> None:
    while True:
        with suppress(OSError), connected(socket) as sock:
            for number in range(8):
                sent(sock, b'{"op":"status","id":%d}' % number, [mine, mine])


def keys_and_nonsense(socket: str, mine: int) -> None:
    with connected(socket) as sock:
        number = 0
        while True:
            number += 1
            message = {"op": "renew", "id": number, "seal": "0" * 24, "key": str(number)}
            sent(sock, json.dumps(message).encode())
            sent(sock, b'{"op":', [mine])
            sock.recv(1 << 17)
            sock.recv(1 << 17)


def silent_closes(socket: str, theirs: int) -> None:
    while True:
        with suppress(OSError), connected(socket) as sock:
            sent(sock, json.dumps({"op": "grant", "id": 1}).encode(), [theirs])
            sent(sock, b"{", [theirs])
            time.sleep(0.05)


def _repeat(attack: Callable[[str, int], None], socket: str, mine: int) -> None:
    """As a user's slice has less of the processors than the system's: what is measured is what the
    service does, and not how the kernel shares them."""
    os.nice(15)
    while True:
        with suppress(OSError, Refusal):
            attack(socket, mine)


ATTACKS: tuple[Callable[[str, int], None], ...] = (
    many_connections, refused_calls, waiters, pass_and_leave, keys_and_nonsense, silent_closes,
)  # fmt: skip


@contextmanager
def attacked(running: Running, root: Path, point: Path) -> Iterator[None]:
    """All attacks by all attackers. Nobody answers the service when it closes the FUSE file."""
    assert running.process is not None
    socket = str(running.socket)
    with ExitStack() as stack:
        found = stack.enter_context(fuse.served(point, fuse.FLUSH))
        found.only = running.process.pid
        server = found.file
        for uid in ATTACKERS:
            for attack in ATTACKS:
                name = server if attack is silent_closes else root / f"{attack.__name__}-{uid}"
                if name != server:
                    written(name)
                mine = os.open(name, os.O_RDWR)
                stack.enter_context(process(lambda a=attack, fd=mine: _repeat(a, socket, fd), uid))
                os.close(mine)
        yield


# Work


@dataclass
class Work:
    """Seconds that each operation took."""

    times: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def timed(self, name: str, operation: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            operation()
        except (OSError, Refusal) as error:
            self.failures.append(f"{name}: {error}")
        self.times.setdefault(name, []).append(time.monotonic() - began)

    def least(self) -> int:
        """How often the rarest operation was done."""
        return min(map(len, self.times.values()), default=0)

    def worst(self, name: str, part: float = 0.99) -> float:
        ordered = sorted(self.times[name])
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def worked(socket: str, root: Path, seconds: float) -> Work:
    """What three who do no harm get done. The holder is an unprivileged user."""
    work, read, sealed = Work(), written(root / "bystander"), written(root / "holder")
    stop = time.monotonic() + seconds
    mine = os.open(sealed, os.O_RDWR)

    def held(client: Client) -> None:
        seal = client.grant(fds=[mine], kind="exclusive").seal
        client.call(Return, seal=seal.id)

    def printed(_: Client) -> None:
        command = [sys.executable, "-m", "sealsvc.cli.sealctl", "--socket", socket, "ls"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, timeout=60)

    def listed() -> None:
        with Client(socket, timeout=60) as client:
            client.call(List)

    with (
        _apart(work, "grant and return", held, WORKER, socket, stop),
        _apart(work, "sealctl ls", printed, 0, socket, stop, closes=mine),
    ):
        os.close(mine)
        while time.monotonic() < stop or work.least() < LEAST:
            work.timed("read by a bystander", lambda: _read(read))
            work.timed("list by an operator", listed)
            time.sleep(PAUSE)
    return work


@contextmanager
def _apart(
    work: Work,
    name: str,
    operation: Callable[[Client], None],
    uid: int,
    socket: str,
    stop: float,
    closes: int = -1,
) -> Iterator[None]:
    """Repeat `operation` in a process of its own until `stop`, as user `uid`. The process has no
    descriptor `closes`."""
    ours, theirs = os.pipe()

    def repeated() -> None:
        if closes >= 0:
            os.close(closes)
        made = Work()
        with Client(socket, timeout=60) as client:
            while time.monotonic() < stop or made.least() < LEAST:
                made.timed(name, lambda: operation(client))
                time.sleep(PAUSE)
        with os.fdopen(theirs, "w") as out:
            json.dump([made.times, made.failures], out)

    with process(repeated, uid):
        os.close(theirs)
        yield
        with os.fdopen(ours) as told:
            times, failures = json.load(told)
    work.times |= times
    work.failures += failures


def _read(path: Path) -> None:
    with path.open("rb") as opened:
        assert len(opened.read(4096)) == 4096


@dataclass(frozen=True)
class Footprint:
    """What the service and its keeper have. Memory is in resident bytes."""

    descriptors: int
    memory: int
    keeper_descriptors: int
    keeper_memory: int
    waiting: int  # operations that are held
    lost: int  # records of the registry

    @classmethod
    def of(cls, running: Running) -> Footprint:
        assert running.process is not None
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as sock:
            sock.connect(str(running.directory / "keeper.sock"))
            keeper = peer_of(sock).pid
        with Client(str(running.socket), timeout=60) as client:
            status = client.status()
        service, held = _footprint(running.process.pid), _footprint(keeper)
        return cls(*service, *held, status.conflicts_waiting, status.registry.lost)


def _footprint(pid: int) -> tuple[int, int]:
    place = Path(f"/proc/{pid}")
    resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(list((place / "fd").iterdir())), resident


@dataclass(frozen=True)
class Result:
    quiet: Work
    attacked: Work
    before: Footprint
    after: Footprint  # some seconds after the attack

    def table(self) -> str:
        heads = ("quiet p50", "quiet p99", "attack p50", "attack p99", "most")
        rows = [" " * 22 + "".join(f"{head:>12}" for head in heads) + f"{'n':>7}"]
        for name in self.quiet.times:
            quiet, found = self.quiet, self.attacked
            times = (
                *(quiet.worst(name, part) for part in (0.5, 0.99)),
                *(found.worst(name, part) for part in (0.5, 0.99, 1.0)),
            )
            told = "".join(f"{1e3 * seconds:>9.1f} ms" for seconds in times)
            rows.append(f"{name:22}{told}{len(found.times[name]):>7}")
        return "\n".join([*rows, f"before: {self.before}", f"after:  {self.after}"])

    def losses(self) -> list[str]:
        """What was lost or is left."""
        before, after = self.before, self.after
        wrong = []
        for name, had, has, more in (
            ("descriptors", before.descriptors, after.descriptors, 8),
            ("memory", before.memory, after.memory, 64 * MiB),
            # The keeper keeps descriptors of the tasks that it looked at last.
            ("keeper's descriptors", before.keeper_descriptors, after.keeper_descriptors, 512),
            ("keeper's memory", before.keeper_memory, after.keeper_memory, 64 * MiB),
        ):
            if has > had + more:
                wrong.append(f"{name}: {had} before, {has} after")
        if after.waiting:
            wrong.append(f"{after.waiting} operations are still held")
        if after.lost:
            wrong.append(f"{after.lost} records of the registry were lost")
        return wrong


def measured(
    running: Running, root: Path, point: Path, quiet: float, attack: float, rest: float
) -> Result:
    """Seconds of each."""
    socket = str(running.socket)
    calm = worked(socket, root, quiet)
    before = Footprint.of(running)
    with attacked(running, root, point):
        time.sleep(1)
        meanwhile = worked(socket, root, attack)
    stop = time.monotonic() + rest
    while True:
        result = Result(calm, meanwhile, before, Footprint.of(running))
        if not result.losses() or time.monotonic() > stop:
            return result
        time.sleep(0.2)
