"""A grant and return, a recall, a bystander's write and an extent map, by the control socket."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from sealsvc.client import Client
from sealsvc.linux import native
from sealsvc.protocol.seals import Recall, Return
from tests.bench.figures import Bench, Figure, alternate


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
        "control-cycle", "SOCK_SEQPACKET round trip in C", 150.0,
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
            "conflict-to-recall", "F_SETLEASE break seen through signalfd in C", 8.0,
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


CYCLE_BENCHMARKS = {
    "control-cycle": cycle,
    "conflict-to-recall": recall,
    "bystander-pwrite": bystander,
    "fiemap": fiemap,
}
