"""REST under load.

A route of ours beside a bare FastAPI route that answers with the same seal, on the same uvicorn, in
alternate rounds of one run. Then many listeners at the events, some of whom read nothing.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil

from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Simulate
from tests.api.conftest import TOKEN
from tests.api.running import Front, simulated, wait_for
from tests.bench.figures import Bench, Figure

CONNECTIONS = 8
BARE = """
import json, socket, sys
import uvicorn
from fastapi import FastAPI
from sealsvc_api.http_protocol import Protocol

seal = json.load(sys.stdin)
app = FastAPI(openapi_url=None)


@app.get("/v1/seals/{seal_id}")
async def show(seal_id: str):
    return seal


sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, http=Protocol)
uvicorn.Server(config).run(sockets=[sock])
"""


@contextmanager
def bare(seal: dict[str, object]) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", BARE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(seal))
        process.stdin.close()
        port = int(process.stdout.readline())
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, process)
        yield port
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Caller:
    """One connection that asks one thing again and again; as little Python as it can be."""

    def __init__(self, port: int, path: str) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = (
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        ).encode()
        self.ask()
        first = self.sock.recv(65536)
        assert first.startswith(b"HTTP/1.1 200"), first
        head = first.index(b"\r\n\r\n") + 4
        found = re.search(rb"content-length: (\d+)", first)
        assert found is not None
        self.size = head + int(found[1])
        while len(first) < self.size:
            first += self.sock.recv(65536)

    def ask(self) -> None:
        self.sent = time.perf_counter()
        self.left = getattr(self, "size", 0)
        self.sock.sendall(self.request)

    def read(self) -> bool:
        """Whether the answer is whole. Fields that count down change its length by a digit."""
        taken = self.sock.recv(65536)
        self.left -= len(taken)
        return self.left <= 4


def load(port: int, path: str, seconds: float) -> tuple[float, list[float]]:
    """Requests a second, and how long each took (microseconds)."""
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        for _ in range(CONNECTIONS):
            caller = Caller(port, path)
            stack.callback(caller.sock.close)
            selector.register(caller.sock, selectors.EVENT_READ, caller)
            caller.ask()
        took: list[float] = []
        begun = time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            for key, _ in selector.select(1.0):
                if key.data.read():
                    took.append((time.perf_counter() - key.data.sent) * 1e6)
                    key.data.ask()
        return len(took) / (now - begun), took


def reading(there: Front, seal: dict[str, object], rounds: int) -> list[Figure]:
    path, port = f"/v1/seals/{seal['id']}", int(there.base.rpartition(":")[2])
    ours, theirs, our_rate, their_rate = [], [], [], []
    with bare(seal) as other:
        for round_ in range(rounds + 1):
            rate, took = load(port, path, 1.0)
            floor_rate, floor = load(other, path, 1.0)
            if round_:  # the first warms up
                ours += took
                theirs += floor
                our_rate.append(rate)
                their_rate.append(floor_rate)
    share = float(np.median(our_rate) / np.median(their_rate))
    floor_name = "bare FastAPI route"
    return [
        Figure(
            "rest_get_rps", "1/s", round(float(np.median(our_rate))), round(min(our_rate)),
            round(float(np.median(their_rate))), floor_name, round(share, 2), 0.7, at_least=True,
        ),
        _compared("rest_get_p99", 99, ours, theirs, floor_name, round(1 / 0.7, 2)),
    ]  # fmt: skip


def _compared(
    name: str, part: int, ours: list[float], floor: list[float], floor_name: str, goal: float | None
) -> Figure:
    """The given percentile of both."""
    told, beneath = float(np.percentile(ours, part)), float(np.percentile(floor, part))
    return Figure(
        name, "us", round(told), round(float(np.percentile(ours, 99))), round(beneath), floor_name,
        round(told / beneath, 2), goal, no_goal="" if goal else "GET /healthz does nothing at all",
    )  # fmt: skip


def creating(there: Front, rounds: int) -> Figure:
    body = {"path": "/sim/made", "holder": {"pid": os.getpid()}}
    took, floor = [], []
    with there.http() as http, there.client() as control:
        control.call(Simulate, action="create", path="/sim/made", size=1 << 20)
        for _ in range(rounds * 50):
            begun = time.perf_counter()
            http.get("/healthz")
            floor.append((time.perf_counter() - begun) * 1e6)
            begun = time.perf_counter()
            seal = http.post("/v1/seals", json=body).json()["id"]
            http.delete(f"/v1/seals/{seal}").raise_for_status()
            took.append((time.perf_counter() - begun) * 1e6)
    return _compared("rest_create_return", 50, took, floor, "GET /healthz by the same client", None)


class Crowd:
    """Listeners: `brisk` ones are read by one thread, `slow` ones by nobody."""

    def __init__(self, there: Front, brisk: int, slow: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.counts: dict[int, int] = {}
        self.slow = [self._open(there, 4096) for _ in range(slow)]
        self.socks = [self._open(there, None) for _ in range(brisk)]
        for sock in self.socks:
            self.selector.register(sock, selectors.EVENT_READ)
            self.counts[sock.fileno()] = 0
        self.over = False
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _open(self, there: Front, buffer: int | None) -> socket.socket:
        sock = socket.socket()
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.connect(("127.0.0.1", int(there.base.rpartition(":")[2])))
        bearer = f"Authorization: Bearer {TOKEN}"
        sock.sendall(f"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\n\r\n".encode())
        return sock

    def _read(self) -> None:
        while not self.over:
            for key, _ in self.selector.select(0.1):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                self.counts[sock.fileno()] += sock.recv(1 << 20).count(b"event: ")

    def close(self) -> None:
        self.over = True
        self.thread.join()
        for sock in (*self.socks, *self.slow):
            sock.close()
        self.selector.close()


def listening(there: Front, brisk: int, slow: int, rate: int, seconds: int) -> Figure:
    """Every brisk listener has every event, whatever the slow ones do; memory stays bounded."""
    process = psutil.Process(there.process.pid)
    with there.client() as control, there.http() as http:
        control.call(Simulate, action="create", path="/sim/told", size=1 << 20)
        crowd = Crowd(there, brisk, slow)
        try:
            wait_for(lambda: _listeners(http) == brisk + slow)
            before, used = process.memory_info().rss, process.cpu_times()
            begun, told = time.monotonic(), 0
            while told < rate * seconds:
                time.sleep(max(0.0, begun + told / rate - time.monotonic()))
                reply = control.grant(path="/sim/told", kind="shared", tag="x" * 200)
                os.close(reply.fds[0])
                control.call(Return, seal=reply.seal.id)  # granted and state: two events
                told += 2
            wait_for(lambda: min(crowd.counts.values()) >= told)
            grown = process.memory_info().rss - before
            after = process.cpu_times()
            dropped = re.search(r"listeners_dropped_total (\d+)", http.get("/metrics").text)
            assert dropped is not None
            least, most = min(crowd.counts.values()), max(crowd.counts.values())
            peers = {
                "events_per_second": round(told / (time.monotonic() - begun)),
                "grown_mib": round(grown / (1 << 20), 1),
                "cpu_seconds": round(after.user + after.system - used.user - used.system, 1),
                "slow_dropped": int(dropped[1]),
            }
            return Figure(
                "rest_listeners", "events", least, most, told,
                f"what was published; {brisk} that read, {slow} that do not",
                round(least / told, 4), 1.0, peers, at_least=True,
            )  # fmt: skip
        finally:
            crowd.close()


def _listeners(http: httpx.Client) -> int:
    found = re.search(r"^sealsvc_api_listeners (\d+)", http.get("/metrics").text, re.M)
    return int(found[1]) if found else -1


def rest(bench: Bench, rounds: int) -> list[Figure]:
    """On a simulated system: what REST costs, not what sealing does."""
    brisk, seconds = (20, 2) if bench.quick else (200, 10)
    with tempfile.TemporaryDirectory() as name, simulated(Path(name)) as there:
        with there.client() as control, there.http() as http:
            control.call(Simulate, action="create", path="/sim/read", size=1 << 20)
            body = {"path": "/sim/read", "holder": {"pid": os.getpid()}}
            seal = http.post("/v1/seals", json=body).json()
        return [
            *reading(there, seal, rounds),
            creating(there, rounds),
            listening(there, brisk, 10, 100, seconds),
        ]
