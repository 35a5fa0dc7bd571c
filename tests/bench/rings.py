"""Seals through the ring against the bare mechanisms, and against what one might use instead."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
