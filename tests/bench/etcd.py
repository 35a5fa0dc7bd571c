"""What one might use instead of a ring: leases of an etcd, by its HTTP gateway."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from tests.bench.figures import Bench, Figure
from tests.bench.rings import RingBench

_MEMBERS = 3


@contextmanager
def etcd(members: int = 1) -> Iterator[list[int]]:
    """The client ports of an etcd on loopback with so many members; none where Debian's etcd-server
    is not installed, or does not answer."""
    program = shutil.which("etcd")
    if program is None:
        yield []
        return
    ports = _free_ports(2 * members)
    clients = [f"http://127.0.0.1:{port}" for port in ports[:members]]
    peers = [f"http://127.0.0.1:{port}" for port in ports[members:]]
    cluster = ",".join(f"member{n}={peer}" for n, peer in enumerate(peers))
    with ExitStack() as stack:
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True)):
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="sealsvc-etcd-"))
            process = subprocess.Popen(
                [
                    program, "--name", f"member{number}", "--data-dir", directory,
                    "--listen-client-urls", client, "--advertise-client-urls", client,
                    "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                    "--initial-cluster", cluster, "--log-level", "error",
                ],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
        yield ports[:members] if all(_answers(port) for port in ports[:members]) else []


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _answers(port: int) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            call(connection, "lease/leases", {})
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            time.sleep(0.1)
        else:
            return True
    return False


def call(connection: http.client.HTTPConnection, name: str, body: dict[str, Any]) -> Any:
    """Raises ValueError for an answer that is an error."""
    connection.request("POST", f"/v3/{name}", json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer


def etcd_cycle(port: int, rounds: int) -> list[float]:
    """A lease granted and revoked, over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    samples = []
    for _ in range(rounds):
        begun = time.perf_counter()
        lease = call(connection, "lease/grant", {"TTL": 60})["ID"]
        call(connection, "lease/revoke", {"ID": lease})
        samples.append((time.perf_counter() - begun) * 1e6)
    connection.close()
    return samples


def _lease_and_put(port: int, rounds: int) -> list[float]:
    """A lease, and a key with it: what others can see of one that is held."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    samples = []
    for number in range(rounds):
        key = base64.b64encode(b"seal/%d" % number).decode()
        begun = time.perf_counter()
        lease = call(connection, "lease/grant", {"TTL": 60})["ID"]
        call(connection, "kv/put", {"key": key, "value": key, "lease": lease})
        samples.append((time.perf_counter() - begun) * 1e6)
    connection.close()
    return samples


def ring_against_etcd(bench: Bench, rounds: int) -> list[Figure]:
    """Grants per second: of a ring (each with the return of the one before), and of an etcd with
    three members, which takes a lease and a put for each."""
    ringing, path = RingBench(bench), bench.file("against-etcd")
    ours: list[float] = []
    theirs: list[float] = []
    with etcd(_MEMBERS) as ports:
        if not ports:
            raise RuntimeError("no etcd: install etcd-server")
        for _ in range(rounds):
            ours += ringing.samples("pipelined", path, 1000)
            theirs += _lease_and_put(ports[0], 100)
    p50, p99 = (1e6 / float(np.percentile(ours, part)) for part in (50, 99))
    floor = 1e6 / float(np.percentile(theirs, 50))
    return [
        Figure(
            "ring_against_etcd", "1/s", round(p50), round(p99), round(floor),
            f"etcd, {_MEMBERS} members on loopback: a lease and a put", round(p50 / floor, 1), 10.0,
            at_least=True,
        )
    ]  # fmt: skip
