"""The figures of the ring: what tests/bench/rings.py measures, beside its floors and its peers."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from tests.bench.etcd import etcd, etcd_cycle
from tests.bench.figures import Bench, Figure, alternate, figure_of
from tests.bench.rings import LIMITS, RingBench, fill_of, keeper_of
from tests.support.service import RISKS, Running

_LIVE, _CLIENTS = 1_000_000, 1000
_LIVE_OF_QUICK, _CLIENTS_OF_QUICK = 50_000, 100
_SPIN, _LOOKS = 50, 2000  # microseconds, looks


def seal_valid(bench: Bench, rounds: int) -> Figure:
    """A check of a seal in the table; nanoseconds. Peer: fcntl(F_GETLEASE)."""
    ringing = RingBench(bench)
    path = bench.file("valid")
    lease = np.percentile(ringing.samples("getlease", path, 50), 50)
    figure = alternate(
        "seal_valid", "a plain load of 8 bytes", 1.5,
        lambda: ringing.samples("valid", path, 50),
        lambda: ringing.samples("load", path, 50), rounds,
    )  # fmt: skip
    peers = {"F_GETLEASE": round(float(lease) / figure.p50, 1)}
    return replace(figure, unit="ns", peers=peers)


def ring_grant_return(bench: Bench, rounds: int) -> Figure:
    """Grant and return, a pair: the return goes with the next grant, as a client that has always
    something to seal does it. Beside it: each waited for; 32 pairs by two doorbells (pairs per
    second); fcntl leases, etcd leases and the control socket, as multiples."""
    ringing = RingBench(bench)
    path = bench.file("ring")
    figure = alternate(
        "ring_grant_return", "eventfd round trip in C", 2.0,
        lambda: ringing.samples("pipelined", path, 1000),
        lambda: bench.floor("eventfd", 2000), rounds,
    )  # fmt: skip
    apart = np.percentile(ringing.samples("cycle", path, 2000), 50)
    batch = np.percentile(ringing.samples("batch", path, 1000), 50)
    peers = {
        "each_waited_for_us": round(float(apart), 2),
        "batched_per_second": round(1e6 / float(batch)),
        "fcntl_lease": _times(bench.floor("lease-cycle", 2000, str(path)), figure),
        "control_socket": _times(_control_cycle(bench, path), figure),
    }
    with etcd() as ports:
        if ports:
            peers["etcd_lease"] = _times(etcd_cycle(ports[0], 200), figure)
    return replace(figure, peers=peers)


def ring_spinning(bench: Bench, rounds: int) -> list[Figure]:
    """Grant and return, each waited for, where the keeper's thread and the client look for a while
    before they sleep, each on a processor of its own: against an eventfd round trip on one. Peers:
    nobody looks; the keeper alone does."""
    before, processors = os.sched_getaffinity(0), list(range(os.cpu_count() or 1))
    if len(processors) < 2:
        return []
    samples: dict[tuple[int, int], list[float]] = {}
    floor: list[float] = []
    try:
        for _ in range(max(1, rounds // 2)):
            for keeper in (0, _SPIN):
                with tempfile.TemporaryDirectory() as made:
                    running = Running(Path(made), [bench.root], RISKS + LIMITS)
                    text = running.config.read_text()
                    spin = f"ring_spin = {keeper}\n[policy]"
                    running.config.write_text(text.replace("[policy]", spin))
                    os.sched_setaffinity(0, processors)
                    running.start()
                    try:
                        running.ready()
                        keeper_pid = keeper_of(str(running.socket)).pid
                        for task in Path(f"/proc/{keeper_pid}/task").iterdir():
                            os.sched_setaffinity(int(task.name), processors[:1])
                        os.sched_setaffinity(0, processors[1:2])
                        other = RingBench(replace(bench, socket=str(running.socket)))
                        path = bench.file("spinning")
                        for looks in (0, _LOOKS):
                            found = samples.setdefault((keeper, looks), [])
                            found += other.samples("cycle", path, 1000, spin=looks)
                    finally:
                        running.end()
            os.sched_setaffinity(0, before)
            floor += bench.floor("eventfd", 2000)
    finally:
        os.sched_setaffinity(0, before)
    figure = figure_of(
        "ring_spinning", samples[_SPIN, _LOOKS], floor, "eventfd round trip in C", 2.0
    )
    peers = {
        f"{name}_us": round(float(np.percentile(samples[key], 50)), 2)
        for name, key in (("nobody", (0, 0)), ("keeper_alone", (_SPIN, 0)))
    }
    return [replace(figure, peers=peers)]


def _times(samples: list[float], figure: Figure) -> float:
    return round(float(np.percentile(samples, 50)) / figure.p50, 1)


def _control_cycle(bench: Bench, path: Path) -> list[float]:
    samples = []
    with Client(bench.socket) as client:
        for _ in range(50):
            fd = os.open(path, os.O_RDWR)
            begun = time.perf_counter()
            reply = client.grant(fds=[fd], kind="shared")
            os.close(fd)
            client.call(Return, seal=reply.seal.id)
            samples.append((time.perf_counter() - begun) * 1e6)
    return samples


def cold_grant_return(bench: Bench, rounds: int) -> Figure:
    """A seal on a file that is not registered: grant by descriptor, close, return."""
    path, bare = bench.file("cold"), bench.file("cold-bare")
    floor = [
        cold + trip
        for cold, trip in zip(
            bench.floor("cold", 2000, str(bare)), bench.floor("eventfd", 2000), strict=True
        )
    ]
    return alternate(
        "cold_grant_return", "mark, FIEMAP, unmark in C + eventfd round trip", 2.0,
        lambda: _control_cycle(bench, path), lambda: floor, rounds,
    )  # fmt: skip


def conflict_to_recall(bench: Bench, rounds: int) -> list[Figure]:
    """From just before another process's truncate(2) to the holder's callback, with cold caches:
    against a lease, which takes one wake-up, and against the least that a fanotify responder in
    another process can do, which takes two. Peers: the floors over and over, with warm caches."""
    ringing = RingBench(bench)
    path, leased = bench.file("recalled", 8192), str(bench.file("lease"))
    watched = str(bench.file("responded", 8192))
    ours: list[float] = []
    lease: list[float] = []
    responder: list[float] = []
    for _ in range(rounds):
        ours += ringing.samples("recall", path, 30)
        lease += bench.floor("lease", 30, leased, "cold")
        responder += bench.floor("responder", 30, watched, "cold")
    peers = {
        f"warm_{name}_us": round(float(np.percentile(bench.floor(name, 200, file), 50)), 1)
        for name, file in (("lease", leased), ("responder", watched))
    }
    signal, eventfd = "F_SETLEASE break seen through signalfd", "fanotify responder + eventfd"
    return [
        replace(figure_of("conflict_to_recall", ours, lease, f"{signal} in C", 2.2), peers=peers),
        figure_of("conflict_to_recall_bare", ours, responder, f"{eventfd} in C", 1.5),
    ]


def conflict_cycle(bench: Bench, rounds: int) -> Figure:
    """From just before another process's truncate(2) to its end, which waits until the holder has
    been recalled and has given the seal back: against a bare responder in another process that
    rings the holder and waits for its answer. Caches are cold."""
    ringing = RingBench(bench)
    path, watched = bench.file("cycled", 8192), str(bench.file("cycle-responded", 8192))
    return alternate(
        "conflict_cycle", "fanotify responder + eventfd there and back in C", 2.0,
        lambda: ringing.samples("conflict", path, 30),
        lambda: bench.floor("responder-whole", 30, watched, "cold"), rounds,
    )  # fmt: skip


def bytes_per_seal(bench: Bench, rounds: int) -> Figure:
    """Memory of the keeper for a million live seals, each; and what a grant costs beside them."""
    ringing = RingBench(bench)
    path = bench.file("million")
    most = _LIVE_OF_QUICK if bench.quick else _LIVE
    counts = (1, 1000, most // 10, most)
    found = {live: fill_of(ringing, path, live) for live in counts}
    cost = {f"grant_us_at_{live}": round(row["p50"], 2) for live, row in found.items()}
    used = round(found[most]["bytes"], 1)
    growth = round(found[most]["p50"] / found[1000]["p50"], 2)
    return Figure(
        "bytes_per_seal", "B", used, used, 64.0, "a slot of the table", round(used / 64, 2), 8.0,
        {**cost, "grant_at_most_over_1k": growth},
    )  # fmt: skip


def many_clients(bench: Bench, rounds: int) -> Figure:
    """A thousand rings at once, mixed work, all served: the slowest of a hundred commands."""
    ringing = RingBench(bench)
    path = bench.file("clients")
    count = _CLIENTS_OF_QUICK if bench.quick else _CLIENTS
    samples = ringing.samples("clients", path, 20, count)
    p50, p99 = np.percentile(samples, 50), np.percentile(samples, 99)
    return Figure(
        "many_clients_p99", "us", round(p99, 1), round(p99, 1), round(p50, 1),
        f"the median of the same, {count} rings", round(p99 / p50, 2), 20.0,
    )  # fmt: skip


RING_BENCHMARKS = {
    "seal_valid": seal_valid,
    "ring_grant_return": ring_grant_return,
    "ring_spinning": ring_spinning,
    "cold_grant_return": cold_grant_return,
    "conflict_to_recall": conflict_to_recall,
    "conflict_cycle": conflict_cycle,
    "bytes_per_seal": bytes_per_seal,
    "many_clients_p99": many_clients,
}
