"""What one line of a benchmark is, and how a figure is measured beside its floor."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
    seals: list[int]

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
    name: str,
    floor_name: str,
    goal: float,
    figure: Sampler,
    floor: Sampler,
    rounds: int,
    unit: str = "us",
) -> Figure:
    a: list[float] = []
    b: list[float] = []
    for _ in range(rounds):
        a += figure()
        b += floor()
    return figure_of(name, a, b, floor_name, goal, unit)


def figure_of(
    name: str,
    samples: Sequence[float],
    floor: Sequence[float],
    floor_name: str,
    goal: float,
    unit: str = "us",
) -> Figure:
    p50, p99, beneath = (
        np.percentile(samples, 50),
        np.percentile(samples, 99),
        np.percentile(floor, 50),
    )
    return Figure(
        name, unit, round(p50, 3), round(p99, 3), round(beneath, 3), floor_name,
        round(p50 / beneath, 2), goal,
    )  # fmt: skip
