"""The service is killed, and nothing gives way: what is sealed stays sealed, what waits waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from sealsvc.client import Client
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.seals import List, RecallSeals, Reclaim, Return, Show
from tests.service.test_conflicts import extents_of, intruding, next_recall
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel
PUNCH = "fallocate(3, 65536, 65536)"
RANGE = {"offset": 65536, "length": 196608}


@pytest.fixture
def running(root: Path, tmp_path: Path) -> Iterator[Running]:
    with served(Running(tmp_path, [root], RISKS)) as made:
        yield made


def granted(client: Client, file: Path, **fields: object) -> str:
    reply = client.grant(path=str(file), **({"kind": "shared", "grace": 200, **RANGE} | fields))
    for fd in reply.fds:
        os.close(fd)
    return reply.seal.id


def restarted(running: Running, client: Client) -> None:
    running.start()
    running.ready()
    client.reconnect(PATIENCE)


def test_what_waits_goes_on_waiting_and_the_recall_is_resumed(running: Running, file: Path) -> None:
    before = extents_of(file)
    with Client(str(running.socket)) as client, intruding_later(file) as intrude:
        seal = granted(client, file)
        intruder = intrude(PUNCH)
        recall = next_recall(client)
        running.kill()
        time.sleep(0.2)
        assert intruder.poll() is None
        assert extents_of(file) == before
        restarted(running, client)
        info = client.call(Reclaim, seal=seal).seal
        assert (info.state, info.seqid) == ("recalled", recall.seqid)
        assert info.deadline_in is not None
        assert 0 < info.deadline_in < 200
        assert next_recall(client).seal == seal
        assert intruder.poll() is None
        client.call(Return, seal=seal)
        assert intruder.wait(PATIENCE) == 0
    assert extents_of(file) != before


def test_a_conflict_that_comes_while_it_is_dead_waits_for_the_next_one(
    running: Running, file: Path
) -> None:
    before = extents_of(file)
    with Client(str(running.socket)) as client, intruding_later(file) as intrude:
        seal = granted(client, file)
        running.kill()
        intruder = intrude(PUNCH)
        reader = intrude("os.pread(os.open(path, os.O_RDONLY), 65536, 65536)")
        assert reader.wait(PATIENCE) == 0, "what does not conflict needs no service"
        time.sleep(0.2)
        assert intruder.poll() is None
        assert extents_of(file) == before
        restarted(running, client)
        client.call(Reclaim, seal=seal)
        recall = next_recall(client)
        assert recall.operation is None or recall.operation.pid == intruder.pid
        client.call(Return, seal=seal)
        assert intruder.wait(PATIENCE) == 0


def test_refusals_go_on(running: Running, file: Path) -> None:
    with Client(str(running.socket)) as client, intruding_later(file) as intrude:
        granted(client, file, conflict="refuse")
        running.kill()
        assert intrude(PUNCH).wait(PATIENCE) == 26  # ETXTBSY


def test_a_lease_is_kept(root: Path, tmp_path: Path, file: Path) -> None:
    running = Running(tmp_path, [root], RISKS + '[enforcers]\nuse = ["lease"]\n')
    running.start()
    try:
        running.ready()
        with Client(str(running.socket)) as client, intruding_later(file) as intrude:
            seal = granted(
                client, file, kind="exclusive", offset=0, length=1 << 20, grace=20, fence="signal"
            )
            running.kill()
            intruder = intrude("os.truncate(path, 4096)")
            time.sleep(0.2)
            assert intruder.poll() is None
            restarted(running, client)
            client.call(Reclaim, seal=seal)
            assert next_recall(client).seal == seal
            assert intruder.poll() is None
            client.call(Return, seal=seal)
            assert intruder.wait(PATIENCE) == 0
    finally:
        running.end()


def test_an_orderly_stop_keeps_the_seals_as_well(running: Running, file: Path) -> None:
    with Client(str(running.socket)) as client, intruding_later(file) as intrude:
        seal = granted(client, file, conflict="refuse")
        running.stop()
        assert intrude(PUNCH).wait(PATIENCE) == 26
        restarted(running, client)
        assert client.call(Show, seal=seal).seal.state == "granted"


def test_a_stop_with_nothing_sealed_leaves_no_keeper(running: Running, file: Path) -> None:
    with Client(str(running.socket)) as client:
        client.call(Return, seal=granted(client, file))
        running.stop()
    until(lambda: not (running.directory / "keeper.sock").exists())


def test_a_holder_that_ends_meanwhile_is_found_out(running: Running, file: Path) -> None:
    code = (
        "import sys\nfrom sealsvc.client import Client\n"
        "client = Client(sys.argv[1])\n"
        "print(client.grant(path=sys.argv[2], kind='shared').seal.id, flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(running.socket), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    seal = holder.stdout.readline().strip()
    running.kill()
    holder.communicate()
    assert refusal(lambda: Client(str(running.socket))).code == "service-unavailable"
    running.start()
    running.ready()
    with Client(str(running.socket)) as client:
        until(lambda: seal not in {s.id for s in client.call(List).result.seals})


def test_the_deadline_goes_on_counting(running: Running, file: Path) -> None:
    """Fence none: after the deadline, which passes while nobody is there, conflicts get EBUSY."""
    with Client(str(running.socket)) as client, intruding_later(file) as intrude:
        seal = granted(client, file, grace=0.5)
        client.call(RecallSeals, seal=seal)
        running.kill()
        time.sleep(0.6)
        restarted(running, client)
        until(lambda: intrude(PUNCH).wait(PATIENCE) == 16)  # EBUSY
        assert client.call(Show, seal=seal).seal.state == "recalled"


def test_a_fence_is_carried_out_by_the_next_service(running: Running, file: Path) -> None:
    code = (
        "import sys\nfrom sealsvc.client import Client\n"
        "client = Client(sys.argv[1])\n"
        "client.grant(path=sys.argv[2], kind='shared', fence='kill', grace=5)\n"
        "print(flush=True)\nsys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(running.socket), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    with Client(str(running.socket)) as client, intruding_later(file) as intrude:
        intruder = intrude("os.truncate(path, 4096)")
        until(lambda: client.call(List, state="recalled").result.seals != [])
        running.kill()
        restarted(running, client)
        assert holder.wait(PATIENCE) == -signal.SIGTERM
        assert intruder.wait(PATIENCE) == 0
    holder.communicate()


def test_only_one_service_owns_a_keeper(running: Running, tmp_path: Path) -> None:
    config = tmp_path / "second.toml"
    config.write_text(
        f'[service]\nsocket = "{tmp_path}/second.sock"\nkeeper = "{tmp_path}/keeper.sock"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "sealsvc.cli.service", "serve", "--config", config],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "another service owns the keeper" in done.stderr


def test_release_lets_everything_go(running: Running, file: Path) -> None:
    command = [sys.executable, "-m", "sealsvc.cli.service", "release", "--all", "--config"]
    with Client(str(running.socket)) as client, intruding_later(file) as intrude:
        granted(client, file)
        alive = subprocess.run(
            [*command, running.config],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert (alive.returncode, "sealctl recall" in alive.stderr) == (1, True)
        intruder = intrude(PUNCH)
        next_recall(client)
        running.kill()
        assert intruder.poll() is None
        subprocess.run([*command, running.config], check=True, timeout=PATIENCE)
        assert intruder.wait(PATIENCE) == 0


def test_watchers_hear_of_the_restart(running: Running, file: Path) -> None:
    with Client(str(running.socket)) as client:
        granted(client, file)
        running.kill()
        restarted(running, client)
        client.call(Watch, since=0)
        events = (push for push in client.pushes(PATIENCE) if isinstance(push, Event))
        event = next(event for event in events if event.name == "reclaimed")
        assert event.data["seals"] == 1


def test_reclaim_is_refused_while_somebody_listens(running: Running, file: Path) -> None:
    with Client(str(running.socket)) as client, Client(str(running.socket)) as other:
        seal = granted(client, file)
        assert refusal(lambda: other.call(Reclaim, seal=seal)).code == "seal-conflict"
        client.close()
        until(lambda: other.call(Reclaim, seal=seal).seal.id == seal)


@contextmanager
def intruding_later(path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Intruders at any time, that are ended with the context."""
    with ExitStack() as stack:
        yield lambda code: stack.enter_context(intruding(path, code))


def test_without_its_keeper_the_service_says_so_and_ends(running: Running, file: Path) -> None:
    """The one death that breaks promises: nobody may go on believing in them."""
    with Client(str(running.socket)) as client:
        granted(client, file)
        client.call(Watch)
        keeper = next(
            process
            for process in psutil.process_iter(["cmdline"])
            if str(running.directory / "keeper.sock") in (process.info["cmdline"] or [])
        )
        keeper.kill()
        events = (push for push in client.pushes(PATIENCE) if isinstance(push, Event))
        alarms = (event.data["reason"] for event in events if event.name == "alarm")
        assert any("no seal is enforced any more" in reason for reason in alarms)
        assert running.process is not None
        assert running.process.wait(PATIENCE) == 1
    assert "the keeper" in running.log.read_text()
    running.start()
    running.ready()
    with Client(str(running.socket)) as client:
        assert client.call(List).result.seals == []
        client.call(Return, seal=granted(client, file))


def test_seals_of_an_enforcer_that_is_not_used_any_more_stop_the_start(
    running: Running, file: Path
) -> None:
    with Client(str(running.socket)) as client, intruding_later(file) as intrude:
        granted(client, file, conflict="refuse")
        running.kill()
        config = running.config.read_text()
        running.config.write_text(config + '[enforcers]\nuse = ["lease"]\n')
        running.start()
        assert running.process is not None
        assert running.process.wait(PATIENCE) == 1
        log = running.log.read_text()
        assert "seals are kept by enforcers that cannot be used (fanotify:" in log
        assert intrude(PUNCH).wait(PATIENCE) == 26  # and nothing was let go
        running.config.write_text(config)
        restarted(running, client)
        assert len(client.call(List).result.seals) == 1
