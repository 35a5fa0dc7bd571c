"""Bad holders: stopped, hung, lying, flooding, or dead, with their pid another's."""

from __future__ import annotations

import errno
import os
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import List, RecallSeals, Return, Show
from sealsvc.protocol.system import Status
from tests.faults.conftest import (
    PUNCH,
    Intrude,
    blocks,
    fencing,
    granted,
    holding,
    nothing_is_left,
    serve,
)
from tests.service.mapping_holder import Holder
from tests.support.refusals import refusal
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with serving(running) as made:
        yield made


@contextmanager
def serving(running: Running) -> Iterator[Client]:
    serve(running)
    running.ready()
    with Client(str(running.socket), timeout=PATIENCE) as made:
        yield made


def the_state(client: Client) -> str:
    states = [seal.state for seal in client.call(List).result.seals]
    return states[0] if states else "over"


# Stopped: it is not dead, and it does not listen.


def test_a_stopped_holder_is_killed_by_its_fence(
    running: Running, client: Client, file: Path, intrude: Intrude
) -> None:
    before = blocks(file)
    with holding(file, running, fence="kill", grace=0.5) as holder:
        holder.process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        intruder = intrude(PUNCH)
        while intruder.poll() is None and holder.process.poll() is None:
            assert blocks(file) == before or holder.process.poll() is not None
        assert holder.process.wait(PATIENCE) == -signal.SIGKILL
        assert time.monotonic() - began >= 0.5
        assert intruder.wait(PATIENCE) == 0
    assert the_state(client) == "over"
    nothing_is_left(running, file, intrude)


@pytest.mark.parametrize("fence", ["signal", "none"])
def test_a_stopped_holder_keeps_its_seal_where_nobody_may_kill_it(
    running: Running, client: Client, file: Path, intrude: Intrude, fence: str
) -> None:
    """SIGTERM does not reach it: the promise is kept, and whoever waits gets EBUSY."""
    before = blocks(file)
    with holding(file, running, fence=fence, grace=0.3) as holder:
        holder.process.send_signal(signal.SIGSTOP)
        assert intrude(PUNCH).wait(PATIENCE) == errno.EBUSY
        until(lambda: the_state(client) == ("fence-failed" if fence == "signal" else "recalled"))
        assert intrude(PUNCH).wait(PATIENCE) == errno.EBUSY
        assert blocks(file) == before
        assert holder.process.poll() is None
        holder.process.send_signal(signal.SIGCONT)
        if fence == "signal":
            assert holder.process.wait(PATIENCE) == -signal.SIGTERM
        else:
            holder.process.kill()
    until(lambda: the_state(client) == "over")
    nothing_is_left(running, file, intrude)


# Hung: alive, and it never reads its recall.


@pytest.mark.parametrize("fence", ["kill", "signal"])
def test_a_hung_holder_is_fenced(
    running: Running, file: Path, intrude: Intrude, fence: str
) -> None:
    deadly = signal.SIGKILL if fence == "kill" else signal.SIGTERM
    if deadly is signal.SIGTERM:
        fencing(running, signal_grace=PATIENCE)
    with serving(running) as client:
        with holding(file, running, fence=fence, grace=0.3) as holder:
            if deadly is signal.SIGKILL:
                holder.do("__import__('signal').signal(15, 1) and None")  # SIGTERM does not help
            assert intrude(PUNCH).wait(PATIENCE) == 0
            assert holder.process.wait(PATIENCE) == -deadly
        assert the_state(client) == "over"
        nothing_is_left(running, file, intrude)


def test_a_holder_that_is_deaf_to_sigterm_keeps_its_seal(
    running: Running, client: Client, file: Path, intrude: Intrude
) -> None:
    before = blocks(file)
    with holding(file, running, fence="signal", grace=0.2) as holder:
        holder.do("__import__('signal').signal(15, __import__('signal').SIG_IGN) and None")
        assert intrude(PUNCH).wait(PATIENCE) == errno.EBUSY
        assert the_state(client) == "fence-failed"
        assert blocks(file) == before
        holder.do("libc.munmap(address, size)")
        holder.do("os.close(fd) or os.close(reply.fds[0])")
        holder.do(
            "client.send(__import__('sealsvc.protocol.seals').protocol.seals.Return,"
            " seal=reply.seal.id)"
        )
        until(lambda: the_state(client) == "over")
    nothing_is_left(running, file, intrude)


# Lying: it says that it has let go.


def test_a_holder_that_returns_what_it_still_maps(
    running: Running, client: Client, file: Path, intrude: Intrude
) -> None:
    before = blocks(file)
    with holding(file, running, grace=200) as holder:
        intruder = intrude(PUNCH)
        until(lambda: the_state(client) == "recalled")
        seal = client.call(List).result.seals[0].id
        for _ in range(20):
            refused = refusal(lambda: client.call(Return, seal=seal))
            assert refused.code == "still-mapped"
            assert str(holder.pid) in refused.details["mappings"][0]
        assert client.call(Show, seal=seal).seal.state == "recalled"
        # It closes everything, which is not enough: the mapping is what counts.
        holder.do("os.close(fd) or os.close(reply.fds[0])")
        assert refusal(lambda: client.call(Return, seal=seal)).code == "still-mapped"
        assert intruder.poll() is None
        assert blocks(file) == before
        holder.do("libc.munmap(address, size)")
        client.call(Return, seal=seal)
        assert intruder.wait(PATIENCE) == 0
    nothing_is_left(running, file, intrude)


def test_a_lie_by_proxy(running: Running, client: Client, file: Path, intrude: Intrude) -> None:
    """It unmaps, but a child of it has inherited the mapping."""
    before = blocks(file)
    with holding(file, running, grace=200) as holder:
        child = holder.do("os.fork() or os.kill(os.getpid(), 19)")
        try:
            holder.do("libc.munmap(address, size)")
            holder.do("os.close(fd) or os.close(reply.fds[0])")
            seal = client.call(List).result.seals[0].id
            intruder = intrude(PUNCH)
            refused = refusal(lambda: client.call(Return, seal=seal))
            assert refused.code == "still-mapped"
            assert str(child) in refused.details["mappings"][0]
            assert intruder.poll() is None
            assert blocks(file) == before
        finally:
            os.kill(child, signal.SIGKILL)
        until(lambda: intruder.poll() is not None or _returned(client, seal))
        assert intruder.wait(PATIENCE) == 0
    nothing_is_left(running, file, intrude)


def _returned(client: Client, seal: str) -> bool:
    try:
        client.call(Return, seal=seal)
    except Exception:
        return False
    return True


# Flooding: it asks and asks, and reads no answer.

ROUNDS = 50
FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
kinds = [b'{"op": "status", "id": %d}', b'{"op": "list", "id": %d}', b'{"op": "audit", "id": %d}',
         b'{"op": "watch", "since": 0, "id": %d}', b'nonsense %d',
         b'{"op": "grant", "kind": "shared", "id": %d, "path": "' + sys.argv[2].encode() + b'"}']
sent = 0
print(flush=True)
try:
    while True:
        sock.send(kinds[sent % len(kinds)] % sent)
        sent += 1
        if sent % 5000 == 0:
            print(sent, flush=True)
except OSError as error:
    print(sent, error, flush=True)
sys.stdin.read()
"""


@contextmanager
def flooding(running: Running, file: Path, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    floods = [
        subprocess.Popen(
            [sys.executable, "-c", FLOOD, running.socket, file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        for flood in floods:
            assert flood.stdout
            flood.stdout.readline()
        yield floods
    finally:
        for flood in floods:
            flood.kill()
            flood.communicate()


def test_a_flood_drowns_nobody_else(
    running: Running, client: Client, file: Path, intrude: Intrude
) -> None:
    other = file.with_name("flooded")
    other.write_bytes(bytes(1 << 20))
    try:
        with flooding(running, other, 3) as floods:
            # They never stop: behind their requests these would wait for ever.
            for _ in range(ROUNDS):
                client.call(Return, seal=granted(client, file))
                assert [flood.poll() for flood in floods] == [None] * len(floods)
            told = []
            for flood in floods:
                flood.send_signal(signal.SIGKILL)
                told.append(flood.communicate()[0].split("\n"))
        print(f"floods: {told}")
        until(lambda: client.call(List).result.seals == [])
        until(lambda: client.call(Status).result.connections == 1)
        nothing_is_left(running, file, intrude)
    finally:
        other.unlink()


def test_one_that_sends_half_and_leaves(
    running: Running, client: Client, file: Path, intrude: Intrude
) -> None:
    for _ in range(200):
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as sock:
            sock.connect(str(running.socket))
            sock.send(b'{"op": "grant", "kind": "shared", "id": 1, "path": "%s"}' % bytes(file))
    until(lambda: client.call(Status).result.connections == 1)
    # What was granted to nobody who could hear of it is the living process's, who can return it.
    for seal in client.call(List, limit=1000).result.seals:
        client.call(Return, seal=seal.id)
    nothing_is_left(running, file, intrude)


# Dead, and its pid is another's: the identity is pid, start time and pidfd.

SUCCESSOR = """
import os, sys
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@contextmanager
def successor(pid: int) -> Iterator[subprocess.Popen[str]]:
    """A new process that has `pid`."""
    for _ in range(200):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(
            [sys.executable, "-c", SUCCESSOR],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if process.pid == pid:
            break
        process.kill()
        process.communicate()
    else:
        pytest.skip(f"the pid {pid} could not be had again")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def killed(holder: Holder) -> None:
    """Dead and reaped: its pid is free."""
    holder.process.kill()
    holder.process.wait()


@pytest.mark.parametrize("fence", ["kill", "signal"])
def test_a_fence_never_touches_a_pids_next_owner(
    running: Running, client: Client, file: Path, intrude: Intrude, fence: str
) -> None:
    """The holder dies while nobody serves, what it left maps on, another gets its pid: the next
    service resumes the recall, whose deadline passes."""
    before = blocks(file)
    with holding(file, running, fence=fence, grace=0.4) as holder:
        child = holder.do("os.fork() or os.kill(os.getpid(), 19)")
        try:
            seal = client.call(List).result.seals[0]
            assert seal.holder.pid == holder.pid
            client.call(RecallSeals, seal=seal.id, grace=0.4)
            running.kill()
            fencing(running, proof_timeout=0.5)  # what the child has is never let go
            killed(holder)
            with successor(holder.pid) as next_owner:
                intruder = intrude(PUNCH)
                serve(running)
                running.ready()
                client.reconnect(PATIENCE)
                until(lambda: the_state(client) in ("fence-failed", "orphaned"))
                time.sleep(1.0)  # longer than grace, and each patience of the fence
                assert next_owner.poll() is None, "an innocent was fenced"
                assert blocks(file) == before
                os.kill(child, signal.SIGKILL)
                until(lambda: the_state(client) == "over")
                assert next_owner.poll() is None
                assert intruder.wait(PATIENCE) in (0, errno.EBUSY)
        finally:
            if the_state(client) != "over":
                os.kill(child, signal.SIGKILL)
    nothing_is_left(running, file, intrude)


def test_a_pids_next_owner_is_not_the_holder(
    running: Running, client: Client, file: Path, intrude: Intrude
) -> None:
    """While the service is there: the seal ends with the holder, whoever has its pid now. Nor does
    the next owner pass its guard, as a holder may."""
    before = blocks(file)
    with holding(file, running, fence="kill", grace=200) as holder:
        child = holder.do("os.fork() or os.kill(os.getpid(), 19)")
        try:
            killed(holder)
            until(lambda: the_state(client) == "orphaned")
            with successor(holder.pid) as next_owner:
                intruder = intrude(PUNCH)
                time.sleep(0.3)
                assert next_owner.poll() is None
                assert intruder.poll() is None
                assert blocks(file) == before
        finally:
            os.kill(child, signal.SIGKILL)
        until(lambda: the_state(client) == "over")
        assert intruder.wait(PATIENCE) == 0
    nothing_is_left(running, file, intrude)
