"""Nothing is left of what the system has: threads, memory, descriptors. The service answers what it
can, keeps what is sealed, and goes on when there is something again."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.linux.processes import peer_of
from sealsvc.protocol.admin import AlarmPage, Alarms
from sealsvc.protocol.seals import Forgotten, List, Return, SealPage
from tests.hostile.users import as_user, connected
from tests.support.cgroups import group
from tests.support.service import RISKS, MiB, Running
from tests.support.waiting import until

pytestmark = pytest.mark.kernel

HANG = 60.0  # seconds: only what waits for ever takes longer
SPARE = 4  # descriptors


@pytest.fixture
def own(root: Path, place: Path) -> Iterator[Running]:
    """A service of the test's own: it may be killed."""
    running = Running(place, [root], RISKS)
    running.start()
    try:
        running.ready()
        yield running
    finally:
        running.end()


def pid_of(running: Running) -> int:
    assert running.process is not None
    return running.process.pid


def keeper_of(running: Running) -> int:
    with connected(str(running.directory / "keeper.sock")) as sock:
        return peer_of(sock).pid


def granted(client: Client, file: Path, **terms: Any) -> str:
    reply = client.grant(path=str(file), **{"kind": "shared", **terms})
    os.close(reply.fds[0])
    return reply.seal.id


def beside(file: Path, number: int) -> Path:
    """A further file, which goes with the directory."""
    made = file.with_name(f"{file.name}-{number}")
    if not made.exists():
        made.write_bytes(bytes(MiB))
    return made


def grant_apart(running: Running, file: Path) -> None:
    with Client(str(running.socket), timeout=HANG) as client:
        client.call(Return, seal=granted(client, file))


def is_alarmed(client: Client, text: str) -> bool:
    page = client.call(Alarms).result
    assert isinstance(page, AlarmPage)
    return any(text in alarm.reason for alarm in page.alarms)


def held(client: Client) -> list[str]:
    page = client.call(List).result
    assert isinstance(page, SealPage)
    return [seal.id for seal in page.seals]


def skip_unless_protected(keeper: int) -> None:
    if Path(f"/proc/{keeper}/oom_score_adj").read_text() != "-1000\n":
        pytest.skip("the keeper cannot lower its oom_score_adj here (CAP_SYS_RESOURCE)")


def cut(file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["truncate", "-s", "4096", file], stderr=subprocess.DEVNULL)


def reads(file: Path) -> None:
    subprocess.run(["head", "-c1", file], check=True, stdout=subprocess.DEVNULL, timeout=HANG)


def test_no_further_thread(own: Running, file: Path, root: Path) -> None:
    """Work waits for the threads there are, and for new ones; an alarm says so."""
    other = root / f"other-{os.getpid()}"
    other.write_bytes(os.urandom(MiB))
    os.sync()
    with Client(str(own.socket), timeout=HANG) as client:
        seal = granted(client, file, grace=20)
        time.sleep(6)  # idle threads end
        with group("pids", [pid_of(own), keeper_of(own)]) as pids:
            pids.limit(1)
            reads(other)
            assert client.status().seals == {"granted": 1}
            intruder = cut(file)
            until(lambda: client.status().conflicts_waiting == 1, HANG)
            with ThreadPoolExecutor(1) as asking:
                later = asking.submit(grant_apart, own, other)
                until(lambda: is_alarmed(client, "no thread can be started"), HANG)
                assert intruder.poll() is None, "it waits for its seal"
                pids.limit(None)
                later.result()
        client.call(Return, seal=seal)
        assert intruder.wait(HANG) == 0
    other.unlink()


def test_the_keeper_at_its_limit_of_memory(own: Running, file: Path, root: Path) -> None:
    """It is not killed, whoever waits goes on waiting, and bystanders do not notice."""
    other = root / f"other-{os.getpid()}"
    other.write_bytes(os.urandom(MiB))
    keeper = keeper_of(own)
    skip_unless_protected(keeper)
    with Client(str(own.socket), timeout=HANG) as client, group("memory", [keeper]) as memory:
        seal = granted(client, file, grace=60)
        memory.limit(memory.used() + MiB)
        waiting = [cut(file) for _ in range(100)]
        until(lambda: client.status().conflicts_waiting + ended(waiting) == 100, HANG)
        reads(other)
        assert Path(f"/proc/{keeper}/comm").read_text() == "sealsvc-keeper\n"
        assert held(client) == [seal]
        client.call(Return, seal=seal)
        for each in waiting:
            assert each.wait(HANG) in (0, 1)
    other.unlink()


def ended(processes: list[subprocess.Popen[bytes]]) -> int:
    return sum(each.poll() is not None for each in processes)


def test_the_service_is_killed_at_its_limit_of_memory(own: Running, file: Path) -> None:
    """The kernel kills it and not its keeper: seals stay in force until the next one serves."""
    service, keeper = pid_of(own), keeper_of(own)
    skip_unless_protected(keeper)
    with group("memory", [service, keeper]) as memory:
        with Client(str(own.socket), timeout=HANG) as client:
            seals = [granted(client, file, grace=60)]
            memory.limit(memory.used() + MiB)
            with suppress(Refusal):
                while len(seals) < 4000:  # each needs memory; of one file, bpf keeps 64
                    seals.append(granted(client, beside(file, len(seals) // 32), grace=60))
        assert own.process is not None
        assert own.process.wait(HANG) == -signal.SIGKILL
        intruder = cut(file)
        time.sleep(1)
        assert intruder.poll() is None, "the seals are in force"
        assert Path(f"/proc/{keeper}/comm").read_text() == "sealsvc-keeper\n"
    own.start()
    own.ready()
    with Client(str(own.socket), timeout=HANG) as client:
        assert sum(client.status().seals.values()) >= len(seals), "one that was granted is lost"
        for seal in seals:
            client.call(Forgotten, seal=seal)
        for seal in held(client):
            client.call(Forgotten, seal=seal)
    assert intruder.wait(HANG) == 0


def test_no_descriptor_is_left_in_the_service(own: Running, file: Path) -> None:
    """Refusals with a code, and as soon as there are descriptors everything is as before."""
    service = pid_of(own)
    soft, hard = resource.prlimit(service, resource.RLIMIT_NOFILE)
    with Client(str(own.socket), timeout=HANG) as client:
        seal = granted(client, file)
        before = len(os.listdir(f"/proc/{service}/fd"))
        resource.prlimit(service, resource.RLIMIT_NOFILE, (3, hard))
        try:
            codes = set()
            for _ in range(20):
                with pytest.raises(Refusal) as refused:
                    granted(client, file)
                codes.add(refused.value.code)
            assert codes <= {"io-error", "try-later", "limit-reached"}
            intruder = cut(file)
            until(lambda: client.status().conflicts_waiting == 1, HANG)
        finally:
            resource.prlimit(service, resource.RLIMIT_NOFILE, (soft, hard))
        client.call(Return, seal=seal)
        assert intruder.wait(HANG) == 0
        seal = granted(client, file)
        client.call(Return, seal=seal)
        until(lambda: len(os.listdir(f"/proc/{service}/fd")) <= before + SPARE, HANG)


def test_descriptors_that_a_crowd_takes_are_not_those_of_others(own: Running, file: Path) -> None:
    """With few descriptors: a user's connections leave enough for a grant of another."""
    service = pid_of(own)
    used = len(os.listdir(f"/proc/{service}/fd"))
    resource.prlimit(service, resource.RLIMIT_NOFILE, (used + 40, used + 40))
    path = str(own.socket)

    def crowd() -> int:
        held = [connected(path) for _ in range(100)]
        time.sleep(1)
        return len(held)

    assert as_user(crowd) == 100
    with Client(path, timeout=HANG) as client:
        client.call(Return, seal=granted(client, file))
        client.call(Return, seal=granted(client, file, kind="exclusive"))  # mounts are looked at
