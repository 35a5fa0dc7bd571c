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
from dataclasses import asdict
from pathlib import Path

from sealsvc.client import Client
from sealsvc.linux import native
from sealsvc.protocol.seals import Recall, Return
from tests.bench.auditing import audit
from tests.bench.exporting import nbd
from tests.bench.faces import faces
from tests.bench.fanout import fan_out
from tests.bench.figures import Bench, Figure, alternate
from tests.bench.guarding import guards
from tests.bench.integrity import INTEGRITY_BENCHMARKS
from tests.bench.lists import lists
from tests.bench.recording import registry
from tests.bench.relocating import relocation
from tests.bench.restart import reclaim
from tests.bench.ringing import RING_BENCHMARKS
from tests.bench.rings import LIMITS
from tests.bench.scrubbing import SCRUB_BENCHMARKS
from tests.support.scratch import mounted
from tests.support.service import RISKS, serving

ROOT = Path(__file__).parents[2]


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
            figure, lambda: bench.floor("lease", 50, str(lease), "cold"), rounds,
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


BENCHMARKS: dict[str, Callable[[Bench, int], Figure | list[Figure]]] = {
    "control-cycle": cycle,
    "conflict-to-recall": recall,
    "bystander-pwrite": bystander,
    "fiemap": fiemap,
    "guards": guards,
    "fan-out": fan_out,
    "audit": audit,
    "registry": registry,
    "reclaim": reclaim,
    "faces": faces,
    "lists": lists,
    "relocation": relocation,
    "nbd": nbd,
    **RING_BENCHMARKS,
    **INTEGRITY_BENCHMARKS,
    **SCRUB_BENCHMARKS,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--extents", type=int, default=1_000_000)
    parser.add_argument(
        "--seals", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="to be reclaimed"
    )
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
        with serving(Path(made), [root], RISKS + LIMITS) as socket, options.out.open("w") as out:
            bench = Bench(root, socket, floors, options.extents, options.seals)
            print(f"{'figure':<24}{'p50':>14}{'p99':>14}{'floor':>12}{'ratio':>8}{'goal':>7}")
            for name in options.names or BENCHMARKS:
                measured = BENCHMARKS[name](bench, options.rounds)
                for figure in measured if isinstance(measured, list) else [measured]:
                    out.write(json.dumps(asdict(figure)) + "\n")
                    print(
                        f"{figure.name:<24}{figure.p50:>14}{figure.p99:>14}{figure.floor:>12}"
                        f"{figure.ratio:>8}{figure.goal:>7}   {figure.unit}; floor:"
                        f" {figure.floor_name}",
                        flush=True,
                    )
    if not options.names and not options.no_lab:
        os.sched_setaffinity(0, everywhere)
        subprocess.run([sys.executable, "-m", "tests.bench.lab"], cwd=ROOT, check=False)


if __name__ == "__main__":
    main()
