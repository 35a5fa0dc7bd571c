"""Recalls of very many holders at once: when does each, and the last, have its notice in hand?

The floor is a bare C sender of the same datagram to as many sockets; both are received by the same
loop, so that what differs is what the service does to decide, record and say it.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from sealsvc.client import Client
from sealsvc.protocol.messages import decode_from_service
from sealsvc.protocol.seals import Recall, RecallSeals, Return
from tests.bench.figures import Bench, Figure, figure_of

HOLDERS = 1000
BLOCK = 4096
LARGEST = 1 << 16

INTRUDER = """
import os, sys, time
for line in sys.stdin:
    print(time.monotonic(), flush=True)
    os.truncate(sys.argv[1], 0)
    print("done", flush=True)
"""


def fan_out(bench: Bench, rounds: int) -> list[Figure]:
    samples: dict[str, list[float]] = {"conflict": [], "operator": [], "floor": []}
    last: dict[str, list[float]] = {name: [] for name in samples}

    def keep(name: str, begun: float, arrived: list[float]) -> None:
        taken = [(at - begun) * 1e6 for at in arrived]
        samples[name] += taken
        last[name].append(max(taken))

    with ExitStack() as stack:
        operator = stack.enter_context(Client(bench.socket))
        holders = [stack.enter_context(Client(bench.socket)) for _ in range(HOLDERS)]
        path = bench.file("fan-out", HOLDERS * BLOCK)
        intruder = stack.enter_context(_process([sys.executable, "-c", INTRUDER, str(path)]))
        for _ in range(rounds):
            for name, begin, end in (
                ("conflict", intruder.begin, intruder.end),
                ("operator", _recalling(operator, str(path)), lambda: None),
            ):
                bench.file("fan-out", HOLDERS * BLOCK)
                seals = _grant(holders, str(path))
                begun, notices = _arrivals([h.fileno() for h in holders], begin)
                size = len(notices[0][1])
                told = [decode_from_service(data) for _, data in notices]
                assert {m.seal for m in told if isinstance(m, Recall)} == set(seals)
                keep(name, begun, [at for at, _ in notices])
                for holder, seal in zip(holders, seals, strict=True):
                    holder.call(Return, seal=seal)
                end()
            with _sender(bench, size) as (fds, begin):
                begun, notices = _arrivals(fds, begin)
                keep("floor", begun, [at for at, _ in notices])
    floor = f"the datagram to {HOLDERS} sockets by a bare C sender"
    return [
        figure_of(f"fan-out-{kind}{which}", found[kind], found["floor"], floor, 4.0)
        for kind in ("conflict", "operator")
        for which, found in (("", samples), ("-last", last))
    ]


def _grant(holders: list[Client], path: str) -> list[str]:
    seals = []
    for number, holder in enumerate(holders):
        reply = holder.grant(
            path=path, kind="shared", offset=number * BLOCK, length=BLOCK, grace=60
        )
        os.close(reply.fds[0])
        seals.append(reply.seal.id)
    return seals


def _recalling(operator: Client, path: str) -> Callable[[], float]:
    def begin() -> float:
        begun = time.monotonic()
        operator.send(RecallSeals, path=path)
        return begun

    return begin


def _arrivals(
    fds: list[int], begin: Callable[[], float]
) -> tuple[float, list[tuple[float, bytes]]]:
    """When it began, and when each of the descriptors had its first message, and which."""
    notices = []
    with select.epoll() as poller:
        for fd in fds:
            poller.register(fd, select.EPOLLIN | select.EPOLLONESHOT)
        begun = begin()
        while len(notices) < len(fds):
            ready = poller.poll(60)
            assert ready, f"{len(notices)} of {len(fds)} have heard"
            for fd, _ in ready:
                data = os.read(fd, LARGEST)
                notices.append((time.monotonic(), data))
    return begun, notices


class _Process:
    """Does something at each line, once it has said when."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout

    def begin(self) -> float:
        self._in.write("go\n")
        self._in.flush()
        return float(self._out.readline())

    def end(self) -> None:
        self._out.readline()


@contextmanager
def _process(command: list[str], fds: list[int] | None = None) -> Iterator[_Process]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=fds or ()
    ) as process:
        yield _Process(process)
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def _sender(bench: Bench, size: int) -> Iterator[tuple[list[int], Callable[[], float]]]:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(HOLDERS)]
    ours, theirs = ([end.fileno() for end in ends] for ends in zip(*pairs, strict=True))
    try:
        command = [str(bench.floors), "send", str(size), *map(str, theirs)]
        with _process(command, theirs) as process:
            yield ours, process.begin
    finally:
        for pair in pairs:
            for end in pair:
                end.close()
