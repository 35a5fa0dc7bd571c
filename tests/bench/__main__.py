"""Figures against floors: `./dev bench [NAME…]`.

Each figure is measured alternately with the bare kernel mechanism beneath it, in the same run:
A B A B, medians over all rounds. A ratio means something; a time on a shared machine does not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from sealsvc import native
from sealsvc.client import Client
from sealsvc.errors import Refusal
from sealsvc.messages import Recall, Return, Status

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from scratch import mounted  # noqa: E402 (after the path)
from service.conftest import RISKS, Running, serving  # noqa: E402

from tests.bench import rings  # noqa: E402

Sampler = Callable[[], list[float]]


@dataclass(frozen=True)
class Figure:
    """One line of bench.jsonl; p50, p99 and floor in `unit`, ratio = p50 / floor. `peers`: other
    figures of the same run, multiples of p50 where the name has no unit."""

    name: str
    unit: str
    p50: float
    p99: float
    floor: float
    floor_name: str
    ratio: float
    goal: float
    peers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Bench:
    """What the benchmarks share."""

    root: Path
    socket: str
    floors: Path
    extents: int
    seals: int
    live: int
    clients: int
    rings: rings.Rings

    def floor(self, name: str, rounds: int, *arguments: str) -> list[float]:
        command = [str(self.floors), name, str(rounds), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return [float(line) for line in done.stdout.split()]

    def file(self, name: str, size: int = 1 << 20) -> Path:
        path = self.root / name
        path.write_bytes(os.urandom(size))
        with path.open("rb") as opened:
            os.fsync(opened.fileno())
        return path


def alternate(
    name: str, floor_name: str, goal: float, figure: Sampler, floor: Sampler, rounds: int
) -> Figure:
    a: list[float] = []
    b: list[float] = []
    for _ in range(rounds):
        a += figure()
        b += floor()
    p50, p99, beneath = np.percentile(a, 50), np.percentile(a, 99), np.percentile(b, 50)
    return Figure(
        name, "us", round(p50, 3), round(p99, 3), round(beneath, 3), floor_name,
        round(p50 / beneath, 2), goal,
    )  # fmt: skip


def cycle(bench: Bench, rounds: int) -> Figure:
    """Grant by descriptor, close it, return: as a client of the control socket sees it."""
    path = bench.file("cycle")

    def figure() -> list[float]:
        samples = []
        with Client(bench.socket) as client:
            for _ in range(50):
                fd = os.open(path, os.O_RDWR)
                begun = time.perf_counter()
                reply = client.grant(fds=[fd])
                os.close(fd)
                client.call(Return, seal=reply.seal.id)
                samples.append((time.perf_counter() - begun) * 1e6)
        return samples

    return alternate(
        "control-cycle", "SOCK_SEQPACKET round trip in C", 400.0,
        figure, lambda: bench.floor("socket", 2000), rounds,
    )  # fmt: skip


INTRUDER = """
import os, sys, time
for line in sys.stdin:
    print(time.monotonic(), flush=True)
    os.truncate(sys.argv[1], 4096)
    print("done", flush=True)
"""


def recall(bench: Bench, rounds: int) -> Figure:
    """From just before an intruder's truncate(2) to the Recall in the holder's hands."""
    path, lease = bench.file("recall"), bench.file("lease")
    intruder = subprocess.Popen(
        [sys.executable, "-c", INTRUDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert intruder.stdin is not None
    assert intruder.stdout is not None
    stdin, stdout = intruder.stdin, intruder.stdout

    def figure() -> list[float]:
        samples = []
        with Client(bench.socket) as client:
            for _ in range(10):
                bench.file("recall")
                reply = client.grant(path=str(path), kind="shared", grace=20)
                os.close(reply.fds[0])
                stdin.write("go\n")
                stdin.flush()
                assert isinstance(next(client.pushes(10)), Recall)
                seen = time.monotonic()
                samples.append((seen - float(stdout.readline())) * 1e6)
                client.call(Return, seal=reply.seal.id)
                stdout.readline()
        return samples

    try:
        return alternate(
            "conflict-to-recall", "F_SETLEASE break seen through signalfd in C", 20.0,
            figure, lambda: bench.floor("lease", 50, str(lease)), rounds,
        )  # fmt: skip
    finally:
        stdin.close()
        intruder.wait(10)
        stdout.close()


def bystander(bench: Bench, rounds: int) -> Figure:
    """pwrite(2) of 4 KiB inside a sealed range, by a process that has nothing to do with it."""
    sealed, bare = bench.file("sealed"), bench.file("bare")
    with Client(bench.socket) as client:
        reply = client.grant(path=str(sealed), kind="shared")
        os.close(reply.fds[0])
        try:
            return alternate(
                "bystander-pwrite", "pwrite through a bare C fanotify responder", 2.0,
                lambda: bench.floor("pwrite", 2000, str(sealed)),
                lambda: bench.floor("pwrite-watched", 2000, str(bare)), rounds,
            )  # fmt: skip
        finally:
            client.call(Return, seal=reply.seal.id)


def fiemap(bench: Bench, rounds: int) -> Figure:
    """An extent map as a numpy array; microseconds per extent."""
    path = bench.root / "fragmented"
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, bench.extents * 8192)
        for at in range(bench.extents):
            native.fallocate(file.fileno(), 3, at * 8192, 4096)
        os.fsync(file.fileno())

        def figure() -> list[float]:
            begun = time.perf_counter()
            rows = native.read_extents(file.fileno(), None)
            taken = (time.perf_counter() - begun) * 1e6
            assert len(rows) >= bench.extents
            return [taken / len(rows)]

        return alternate(
            "fiemap-per-extent", "a bare C loop, batches of 512", 1.25,
            figure, lambda: bench.floor("fiemap", 1, str(path)), rounds,
        )  # fmt: skip


def reclaim(bench: Bench, rounds: int) -> Figure:
    """From kill -9 of a service with seals to the answer of the next one, which has them all; in
    microseconds, processes and interpreters included. The floor is the same with nothing sealed."""
    with tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as made:
        running = Running(Path(made), [bench.root], RISKS)
        running.start()
        running.ready()

        def restart(expected: int) -> list[float]:
            running.kill()
            begun = time.perf_counter()
            running.start()
            while True:
                try:
                    with Client(str(running.socket)) as client:
                        told = client.call(Status).result
                    break
                except Refusal:
                    time.sleep(0.001)
            taken = time.perf_counter() - begun
            assert sum(told.seals.values()) == expected, told.seals
            return [taken * 1e6]

        try:
            floor = [sample for _ in range(rounds) for sample in restart(0)]
            with Client(str(running.socket)) as client:
                paths = [bench.file(f"reclaim-{n}", 16 * 4096) for n in range(bench.seals // 8)]
                for n in range(bench.seals):
                    reply = client.grant(
                        path=str(paths[n % len(paths)]), kind="shared", conflict="refuse",
                        offset=n // len(paths) * 4096, length=4096,
                    )  # fmt: skip
                    os.close(reply.fds[0])
                figure = [sample for _ in range(rounds) for sample in restart(bench.seals)]
        finally:
            running.end()
    return alternate(
        f"reclaim-{bench.seals}", "a restart with nothing sealed", 8.0,
        lambda: figure, lambda: floor, 1,
    )  # fmt: skip


def seal_valid(bench: Bench, rounds: int) -> Figure:
    """A check of a seal in the table; nanoseconds. Peer: fcntl(F_GETLEASE)."""
    path = bench.file("valid")
    lease = np.percentile(bench.rings.samples("getlease", path, 50), 50)
    figure = alternate(
        "seal_valid", "a plain load of 8 bytes", 1.5,
        lambda: bench.rings.samples("valid", path, 50),
        lambda: bench.rings.samples("load", path, 50), rounds,
    )  # fmt: skip
    peers = {"F_GETLEASE": round(float(lease) / figure.p50, 1)}
    return replace(figure, unit="ns", peers=peers)


def ring_grant_return(bench: Bench, rounds: int) -> Figure:
    """Grant and return, a pair: the return goes with the next grant, as a client that has always
    something to seal does it. Beside it: each waited for; 32 pairs by two doorbells (pairs per
    second); fcntl leases, etcd leases and the control socket, as multiples."""
    path = bench.file("ring")
    figure = alternate(
        "ring_grant_return", "eventfd round trip in C", 2.0,
        lambda: bench.rings.samples("pipelined", path, 1000),
        lambda: bench.floor("eventfd", 2000), rounds,
    )  # fmt: skip
    apart = np.percentile(bench.rings.samples("cycle", path, 2000), 50)
    batch = np.percentile(bench.rings.samples("batch", path, 1000), 50)
    peers = {
        "each_waited_for_us": round(float(apart), 2),
        "batched_per_second": round(1e6 / float(batch)),
        "fcntl_lease": _times(bench.floor("lease-cycle", 2000, str(path)), figure),
        "control_socket": _times(_control_cycle(bench, path), figure),
    }
    with rings.etcd() as port:
        if port is not None:
            peers["etcd_lease"] = _times(rings.etcd_cycle(port, 200), figure)
    return replace(figure, peers=peers)


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


def conflict_to_recall(bench: Bench, rounds: int) -> Figure:
    """From just before another process's truncate(2) to the holder's callback."""
    path, lease = bench.file("recalled", 8192), bench.file("lease")
    return alternate(
        "conflict_to_recall", "F_SETLEASE break seen through signalfd in C", 1.5,
        lambda: bench.rings.samples("recall", path, 20),
        lambda: bench.floor("lease", 50, str(lease)), rounds,
    )  # fmt: skip


def bytes_per_seal(bench: Bench, rounds: int) -> Figure:
    """Memory of the keeper for a million live seals, each; and what a grant costs beside them."""
    path = bench.file("million")
    counts = (1, 1000, 100_000, bench.live)
    found = {live: rings.fill_of(bench.rings, path, live) for live in counts}
    cost = {f"grant_us_at_{live}": round(row["p50"], 2) for live, row in found.items()}
    used = round(found[bench.live]["bytes"], 1)
    growth = round(found[bench.live]["p50"] / found[1000]["p50"], 2)
    return Figure(
        "bytes_per_seal", "B", used, used, 64.0, "a slot of the table", round(used / 64, 2), 8.0,
        {**cost, "grant_at_most_over_1k": growth},
    )  # fmt: skip


def many_clients(bench: Bench, rounds: int) -> Figure:
    """A thousand rings at once, mixed work, all served: the slowest of a hundred commands."""
    path = bench.file("clients")
    samples = bench.rings.samples("clients", path, 20, bench.clients)
    p50, p99 = np.percentile(samples, 50), np.percentile(samples, 99)
    return Figure(
        "many_clients_p99", "us", round(p99, 1), round(p99, 1), round(p50, 1),
        f"the median of the same, {bench.clients} rings", round(p99 / p50, 2), 20.0,
    )  # fmt: skip


BENCHMARKS: dict[str, Callable[[Bench, int], Figure]] = {
    "control-cycle": cycle,
    "conflict-to-recall": recall,
    "bystander-pwrite": bystander,
    "fiemap": fiemap,
    "reclaim": reclaim,
    "seal_valid": seal_valid,
    "ring_grant_return": ring_grant_return,
    "cold_grant_return": cold_grant_return,
    "conflict_to_recall": conflict_to_recall,
    "bytes_per_seal": bytes_per_seal,
    "many_clients_p99": many_clients,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--extents", type=int, default=1_000_000)
    parser.add_argument("--seals", type=int, default=10_000)
    parser.add_argument("--live", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--no-lab", action="store_true", help="not those that need the lab")
    parser.add_argument("--out", type=Path, default=Path("bench.jsonl"))
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the benchmarks mount a file system: run as root")
    # Who wakes whom on which CPU decides more than the code does: everything on one.
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    with (
        tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as made,
        mounted("xfs", 12 << 30) as root,
    ):
        floors = Path(made, "floors")
        source = Path(__file__).with_name("floors.c")
        subprocess.run(["gcc", "-O2", "-o", floors, source, "-lpthread"], check=True)
        with (
            serving(Path(made), [root], RISKS + rings.LIMITS) as socket,
            options.out.open("w") as out,
        ):
            bench = Bench(
                root, socket, floors, options.extents, options.seals, options.live,
                options.clients, rings.Rings(None, Path(made)),
            )  # fmt: skip
            bench.rings.bench = bench
            print(f"{'figure':<20}{'p50':>10}{'p99':>10}{'floor':>10}{'ratio':>8}{'goal':>7}")
            for name in options.names or BENCHMARKS:
                figure = BENCHMARKS[name](bench, options.rounds)
                out.write(json.dumps(asdict(figure)) + "\n")
                print(
                    f"{figure.name:<20}{figure.p50:>10}{figure.p99:>10}{figure.floor:>10}"
                    f"{figure.ratio:>8}{figure.goal:>7}   us; floor: {figure.floor_name}",
                    flush=True,
                )
    if not options.names and not options.no_lab:
        os.sched_setaffinity(0, everywhere)
        subprocess.run([sys.executable, "-m", "tests.bench.lab"], cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
