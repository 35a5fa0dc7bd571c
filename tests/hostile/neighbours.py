"""Three unprivileged users attack all at once while others work: how long does their work take?

The attacks are those that each stopped the service once: connections, refused calls, descriptors
whose close is never answered, descriptors of clients that leave at once, waiters, keys of requests,
requests that are none. What is measured: a bystander's read, a grant and return by another user,
and an operator's list. It is measured first without the attack.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import List, Return
from tests.hostile import fuse
from tests.hostile.users import connected, process, sent
from tests.support.service import Running

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
    ours, theirs = os.pipe()
    mine = os.open(sealed, os.O_RDWR)
    stop = time.monotonic() + seconds

    def holder() -> None:
        made = Work()
        with Client(socket, timeout=60) as client:

            def once() -> None:
                seal = client.grant(fds=[mine], kind="exclusive").seal
                client.call(Return, seal=seal.id)

            while time.monotonic() < stop or made.least() < LEAST:
                made.timed("grant and return", once)
                time.sleep(PAUSE)
        with os.fdopen(theirs, "w") as out:
            json.dump([made.times, made.failures], out)

    def listed() -> None:
        with Client(socket, timeout=60) as client:
            client.call(List)

    with process(holder, WORKER):
        os.close(mine)
        os.close(theirs)
        while time.monotonic() < stop or work.least() < LEAST:
            work.timed("read by a bystander", lambda: _read(read))
            work.timed("list by an operator", listed)
            time.sleep(PAUSE)
        with os.fdopen(ours) as told:
            times, failures = json.loads(told.read())
    work.times |= times
    work.failures += failures
    return work


def _read(path: Path) -> None:
    with path.open("rb") as opened:
        assert len(opened.read(4096)) == 4096


@dataclass(frozen=True)
class Result:
    quiet: Work
    attacked: Work
    descriptors: tuple[int, int]  # of the service, before and some time after
    memory: tuple[int, int]  # resident bytes

    def table(self) -> str:
        rows = [f"{'':22}{'quiet p99':>12}{'attack p50':>12}{'attack p99':>12}{'most':>9}{'n':>7}"]
        for name in self.quiet.times:
            found = self.attacked
            rows.append(
                f"{name:22}{self.quiet.worst(name):>10.3f} s{found.worst(name, 0.5):>10.3f} s"
                f"{found.worst(name):>10.3f} s{found.worst(name, 1):>7.2f} s"
                f"{len(found.times[name]):>7}"
            )
        rows.append(f"descriptors {self.descriptors}, resident bytes {self.memory}")
        return "\n".join(rows)


def footprint(running: Running) -> tuple[int, int]:
    assert running.process is not None
    place = Path(f"/proc/{running.process.pid}")
    resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(list((place / "fd").iterdir())), resident


def measured(
    running: Running, root: Path, point: Path, quiet: float, attack: float, rest: float
) -> Result:
    """Seconds of each."""
    socket = str(running.socket)
    before = worked(socket, root, quiet)
    first = footprint(running)
    with attacked(running, root, point):
        time.sleep(1)
        meanwhile = worked(socket, root, attack)
    stop = time.monotonic() + rest
    while (last := footprint(running))[0] > first[0] + 8 and time.monotonic() < stop:
        time.sleep(0.2)
    return Result(before, meanwhile, (first[0], last[0]), (first[1], last[1]))
