"""Seals through the ring against the bare mechanisms, and against what one might use instead."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.bench.figures import Bench

ROOT = Path(__file__).parents[2]
LIBSEAL = ROOT / "native" / "libseal"
BUILT = ROOT / "build" / "native" / "native" / "libseal" / "libseal.a"
LIMITS = "max_seals = 8000000\nmax_seals_per_holder = 8000000\nmax_seals_per_file = 100000\n"


def build(directory: Path) -> Path:
    """The client in C, linked with libseal."""
    program = directory / "ring"
    source = Path(__file__).with_name("ring.c")
    subprocess.run(
        ["gcc", "-O2", f"-I{LIBSEAL}", "-o", program, source, BUILT], check=True, timeout=60
    )
    return program


def keeper_of(control: str) -> psutil.Process:
    path = os.path.join(os.path.dirname(control), "keeper.sock")
    found = psutil.process_iter(["cmdline"])
    return psutil.Process(next(p.pid for p in found if path in (p.info["cmdline"] or [])))


class RingBench:
    """The client in C and its ways, beside what all benchmarks share."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.program = bench, build(bench.floors.parent)

    def samples(
        self, mode: str, path: Path, rounds: int, live: int = 0, spin: int = 0
    ) -> list[float]:
        with self.holding(mode, path, rounds, live, spin) as lines:
            return lines

    @contextmanager
    def holding(
        self, mode: str, path: Path, rounds: int, live: int, spin: int = 0
    ) -> Iterator[list[float]]:
        """Its samples; while the context lasts it has its seals."""
        arguments = [mode, self.bench.socket, path, rounds, live]
        process = subprocess.Popen(
            [self.program, *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "RING_SPIN": str(spin)},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        lines: list[float] = []
        for line in process.stdout:
            if line == "held\n":
                break
            lines.append(float(line))
        try:
            yield lines
        finally:
            process.communicate("\n", timeout=60)
        assert process.returncode == 0, mode

    def settled(self) -> None:
        """A moment for the service to let go of what the last client left."""
        time.sleep(0.2)


def fill_of(rings: RingBench, path: Path, live: int) -> dict[str, float]:
    """Grant and return with so many live seals beside, and what those cost in memory. Shared pages
    of the table count as the keeper's."""
    keeper = keeper_of(rings.bench.socket)
    before, table = keeper.memory_info().rss, _shmem()
    with rings.holding("cycle", path, 500, live) as samples:
        after = keeper.memory_info().rss
        grown = max(after - before, _shmem() - table)
    rings.settled()
    return {"p50": float(np.percentile(samples, 50)), "bytes": grown / max(1, live)}


def _shmem() -> int:
    text = Path("/proc/meminfo").read_text()
    return (
        int(next(line.split()[1] for line in text.splitlines() if line.startswith("Shmem:"))) * 1024
    )


@contextmanager
def etcd() -> Iterator[int | None]:
    """A local etcd's client port; None where Debian's etcd-server is not installed."""
    program = shutil.which("etcd")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sealsvc-etcd-") as directory:
        ports = [_free_port(), _free_port()]
        client, peer = (f"http://127.0.0.1:{port}" for port in ports)
        process = subprocess.Popen(
            [
                program, "--data-dir", directory, "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer,
                "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
                "--log-level", "error",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield ports[0] if _answers(ports[0]) else None
        finally:
            process.terminate()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            _etcd_call(http.client.HTTPConnection("127.0.0.1", port, timeout=2), "lease/leases", {})
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            time.sleep(0.1)
        else:
            return True
    return False


def _etcd_call(connection: http.client.HTTPConnection, call: str, body: dict[str, Any]) -> Any:
    connection.request("POST", f"/v3/{call}", json.dumps(body))
    return json.loads(connection.getresponse().read())


def etcd_cycle(port: int, rounds: int) -> list[float]:
    """A lease granted and revoked, by its HTTP gateway, over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    samples = []
    for _ in range(rounds):
        begun = time.perf_counter()
        lease = _etcd_call(connection, "lease/grant", {"TTL": 60})["ID"]
        _etcd_call(connection, "lease/revoke", {"ID": lease})
        samples.append((time.perf_counter() - begun) * 1e6)
    connection.close()
    return samples
