"""The same by each face of the service: REST, the control socket, and a ring. No figure has a goal:
they tell what one chooses between."""

from __future__ import annotations

import http.client
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sealsvc.client import Client
from sealsvc.protocol.seals import Return, Show
from tests.api.conftest import TOKEN, write_principals
from tests.api.running import front
from tests.bench.figures import Bench, Figure, figure_of
from tests.bench.rings import RingBench

_CYCLES, _LOOKS = 30, 200
_NO_GOAL = "it tells what one chooses between"


class Rest:
    """One connection; as little Python as it can be."""

    def __init__(self, base: str) -> None:
        host, port = base.removeprefix("http://").split(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=30)

    def __call__(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        self.connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = self.connection.getresponse()
        text = answer.read()
        assert answer.status < 300, text
        return json.loads(text) if text else None


def _timed(count: int, call: Callable[[], object]) -> list[float]:
    samples = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        samples.append((time.perf_counter() - begun) * 1e6)
    return samples


def _compared(name: str, samples: list[float], floor: list[float]) -> Figure:
    return figure_of(name, samples, floor, "control socket", None, no_goal=_NO_GOAL)


def faces(bench: Bench, rounds: int) -> list[Figure]:
    """Grant and return of a file that is not registered, and a look at a seal. Peers: of the ring,
    grant and return each waited for, and seal_valid, in the same unit."""
    path, looked_at = bench.file("faces"), bench.file("looked-at")
    ringing = RingBench(bench)
    samples: dict[str, list[float]] = {name: [] for name in ("rest", "socket", "get", "show")}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        admin = {"role": "admin", "scopes": ["/"], "holders": ["*"], "token": TOKEN}
        principals = write_principals(
            directory / "principals.toml", root={**admin, "requests_per_second": 100_000}
        )
        rest = Rest(stack.enter_context(front(Path(bench.socket).parent, principals)).base)
        client = stack.enter_context(Client(bench.socket))
        reply = client.grant(path=str(looked_at), kind="shared")
        seal = reply.seal.id
        os.close(reply.fds[0])

        # The holder is this process both times; what it has closed is quickly proven to be gone.
        def by_rest() -> None:
            fd = os.open(path, os.O_RDWR)
            holder = {"pid": os.getpid(), "fd": fd}
            seal = rest("POST", "/v1/seals", {"holder": holder, "kind": "shared"})["id"]
            os.close(fd)
            rest("DELETE", f"/v1/seals/{seal}")

        def by_socket() -> None:
            fd = os.open(path, os.O_RDWR)
            seal = client.grant(fds=[fd], kind="shared").seal.id
            os.close(fd)
            client.call(Return, seal=seal)

        by_rest()
        by_socket()
        for _ in range(rounds):
            samples["rest"] += _timed(_CYCLES, by_rest)
            samples["socket"] += _timed(_CYCLES, by_socket)
            samples["get"] += _timed(_LOOKS, lambda: rest("GET", f"/v1/seals/{seal}"))
            samples["show"] += _timed(_LOOKS, lambda: client.call(Show, seal=seal))
        client.call(Return, seal=seal)
    cycle = float(np.percentile(ringing.samples("cycle", path, 1000), 50))
    look = float(np.percentile(ringing.samples("valid", path, 50), 50)) / 1000
    return [
        replace(
            _compared("rest_grant_return", samples["rest"], samples["socket"]),
            peers={"ring_us": round(cycle, 2)},
        ),
        replace(
            _compared("rest_get", samples["get"], samples["show"]),
            peers={"seal_valid_us": round(look, 5)},
        ),
    ]
