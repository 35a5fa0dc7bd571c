"""The service, or a client, is killed: rings go on, and are found again."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.core.model import State
from sealsvc.protocol.seals import List
from sealsvc.runtime.config import ServiceSection
from sealsvc.service.release import release
from tests.ring.conftest import BLOCK, ROUNDS, hears, intruder, truncating
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel]


def restart(running: Running) -> None:
    running.start()
    running.ready()


def test_a_dead_service_is_not_missed(
    running: Running, client: RingClient, fd: int, file: Path
) -> None:
    registered = client.register(fd, grace=200)
    seal = client.grant(registered, 0, BLOCK)
    running.kill()
    other = client.grant(registered, BLOCK, BLOCK)
    other.give_back()
    assert seal.valid
    with truncating(file, 2 * BLOCK):
        pass  # in nobody's way
    # While somebody maps the file, the gate alone cannot tell which range.
    with mmap.mmap(fd, BLOCK), truncating(file, BLOCK) as process:
        time.sleep(0.2)
        assert process.poll() is None, "nobody has looked whether what was given back is mapped"
        restart(running)
        process.wait(PATIENCE)
    assert os.fstat(fd).st_size == BLOCK
    assert seal.valid


def test_a_conflict_while_the_service_is_dead(
    running: Running, client: RingClient, fd: int, file: Path
) -> None:
    seal = client.grant(client.register(fd, grace=200), 0, BLOCK)
    running.kill()
    with truncating(file, 0) as process:
        assert hears(client, lambda n: n.kind == "recall").slot == seal.slot
        assert seal.state is State.RECALLED
        time.sleep(0.1)
        assert process.poll() is None
        restart(running)
        with Client(str(running.socket)) as operator:
            until(lambda: _states(operator).count(State.RECALLED) == 1)
        seal.refresh()
        seal.give_back()
        process.wait(PATIENCE)


def test_a_return_while_the_next_service_starts(
    running: Running, client: RingClient, fd: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported before the service knows the seal, and is carried out all the same."""
    seal = client.grant(client.register(fd, grace=200), 0, BLOCK)
    running.kill()
    with truncating(file, 0) as process, ThreadPoolExecutor(1) as other:
        hears(client, lambda n: n.kind == "recall")
        monkeypatch.setenv("SEALSVC_FAULTS", "start:enforced=sleep:1.5")
        running.start()
        assert running.process is not None
        call = Path(f"/proc/{running.process.pid}/syscall")
        until(lambda: call.read_text().startswith("230 "))  # clock_nanosleep()
        seal.refresh()
        returned = other.submit(seal.give_back)
        running.ready()
        returned.result(PATIENCE)
        process.wait(PATIENCE)
    assert seal.state is State.RETURNED


def test_a_recalled_seal_that_nobody_returns_is_dealt_with_after_the_restart(
    running: Running, client: RingClient, fd: int, file: Path
) -> None:
    """Its deadline has passed: with fence none, who waits gets EBUSY."""
    seal = client.grant(client.register(fd, grace=0.5), 0, BLOCK)
    running.kill()
    code = "try: os.truncate(sys.argv[1], 0)\nexcept OSError as e: sys.exit(e.errno)"
    with intruder(code, file) as process:
        hears(client, lambda n: n.kind == "recall")
        restart(running)
        assert process.wait(PATIENCE) == errno.EBUSY
    assert seal.state is State.RECALLED


def test_a_command_waits_for_the_next_service(
    running: Running, client: RingClient, fd: int
) -> None:
    seal = client.grant(client.register(fd), 0, BLOCK)
    running.kill()
    area = mmap.mmap(fd, BLOCK)
    starter = threading.Timer(0.3, restart, [running])
    starter.start()
    seal.mapped()
    starter.join()
    assert seal.state is State.ACTIVE
    area.close()


def test_registrations_survive_and_the_client_connects_again(
    running: Running, client: RingClient, fd: int, file: Path
) -> None:
    registered = client.register(fd)
    seals = [client.grant(registered, n * BLOCK, BLOCK) for n in range(20)]
    for _ in range(3):
        running.kill()
        restart(running)
    until(lambda: bool(client.dispatch() or not client.connected))
    client.reconnect()
    assert client.connected
    assert all(seal.valid for seal in seals)
    with truncating(file, 10 * BLOCK):
        recalled = seals[10:]
        until(lambda: all(seal.state is State.RECALLED for seal in recalled))
        for seal in recalled:
            seal.refresh()
            seal.give_back()
    assert sum(seal.valid for seal in seals) == 10
    client.unregister(registered)
    with Client(str(running.socket)) as operator:
        assert operator.call(List).result.seals == []


def test_a_client_attaches_again_after_its_death(running: Running, file: Path) -> None:
    code = """
from sealsvc.client.ring import RingClient
client = RingClient(sys.argv[1])
fd = os.open(sys.argv[2], os.O_RDWR)
seal = client.grant(client.register(fd), 0, 4096)
print(*client.identity, flush=True)
os.kill(os.getpid(), 9)
"""
    with intruder(code, running.socket, file) as holder:
        assert holder.stdout is not None
        ring, secret = holder.stdout.readline().split()
    with (
        RingClient(str(running.socket), ring=int(ring), secret=secret) as again,
        Client(str(running.socket)) as operator,
        file.open("r+b") as opened,
    ):
        until(lambda: operator.call(List).result.seals == [])
        hears(again, lambda n: n.kind == "over")
        seal = again.grant(again.register(opened.fileno()), 0, BLOCK)
        assert seal.valid


def test_a_ring_whose_keeper_has_ended(running: Running, client: RingClient, fd: int) -> None:
    registered = client.register(fd)
    running.kill()
    release(ServiceSection(socket=str(running.socket)))

    def noticed() -> bool:
        try:
            client.grant(registered, 0, BLOCK).give_back()
        except BrokenPipeError:
            return True
        return False

    until(noticed)  # it is the keeper's last act
    restart(running)


LOAD = """
import random
from sealsvc.client.ring import RingClient
client = RingClient(sys.argv[1], timeout=120)
fd = os.open(sys.argv[2], os.O_RDWR)
chance = random.Random(int(sys.argv[3]))
while True:
    try:
        registered = client.register(fd, length=1 << 20)
        break
    except OSError:  # the intruder is at it
        time.sleep(0.01)
print("ready", flush=True)
held = []
def give_back(seal):
    # False when it was recalled in between: tried again.
    try:
        seal.refresh()
        seal.give_back()
    except FileNotFoundError:
        pass  # it is over
    except OSError as error:
        if error.errno not in (11, 110, 116):
            raise
        return False
    return True
while True:
    client.dispatch()
    recalled = [seal for seal in held if not seal.valid]
    held = [seal for seal in held if seal not in recalled or not give_back(seal)]
    if held and (len(held) > 20 or chance.random() < 0.5):
        seal = held[chance.randrange(len(held))]
        if give_back(seal):
            held.remove(seal)
    else:
        try:
            held.append(client.grant(registered, chance.randrange(8) * 65536, 4096))
        except OSError as error:
            if error.errno not in (11, 95, 110):
                raise
"""
HAMMER = """
import random
chance = random.Random(1)
fd = os.open(sys.argv[1], os.O_RDWR)
block = os.urandom(1 << 20)
print("ready", flush=True)
while True:
    os.truncate(sys.argv[1], chance.randrange(1 << 20))
    os.pwrite(fd, block, 0)
    os.fsync(fd)
    time.sleep(chance.random() * 0.05)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_kills_of_clients_and_services(running: Running, file: Path) -> None:
    """Two clients over rings, an intruder, and death: everything goes on, and ends."""
    chance = random.Random(5)

    def start(code: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "import os, sys, time\n" + code, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
        )

    clients = [start(LOAD, running.socket, file, n) for n in range(2)]
    intruding = start(HAMMER, file)
    killed = 0
    try:
        for process in (*clients, intruding):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for turn in range(ROUNDS):
            time.sleep(chance.random() * 0.5)
            if turn % 2:
                running.kill()
                restart(running)
            else:
                victim = chance.randrange(2)
                clients[victim].kill()
                clients[victim].communicate()
                clients[victim] = start(LOAD, running.socket, file, turn)
                assert clients[victim].stdout is not None
                assert clients[victim].stdout.readline() == "ready\n"
            killed += 1
            assert intruding.poll() is None
            assert all(client.poll() is None for client in clients)
    finally:
        for process in (intruding, *clients):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.communicate()
    assert killed == ROUNDS
    with Client(str(running.socket), timeout=PATIENCE) as operator:
        with suppress(AssertionError):
            until(lambda: not operator.call(List).result.seals)
        left = [(s.state, s.reason, s.ring, s.seqid) for s in operator.call(List).result.seals]
        assert not left, left


def _states(operator: Client) -> list[State]:
    return [seal.state for seal in operator.call(List).result.seals]
