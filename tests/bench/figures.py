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
    """One line of bench.jsonl; p50, p99 and floor in `unit`, ratio = p50 / floor. The goal is the
    most that the ratio may be, or with `at_least` the least; a figure without one says in `no_goal`
    why it has none. `peers`: other figures of the same run, multiples of p50 where the name has no
    unit. Raises ValueError for a figure with neither a goal nor a reason, or with both."""

    name: str
    unit: str
    p50: float
    p99: float
    floor: float
    floor_name: str
    ratio: float
    goal: float | None
    peers: dict[str, float] = field(default_factory=dict)
    at_least: bool = False
    no_goal: str = ""

    def __post_init__(self) -> None:
        if (self.goal is None) != bool(self.no_goal):
            raise ValueError(f"figure {self.name}: it has a goal, or says why it has none")

    @property
    def met(self) -> bool:
        """Whether the ratio is within the goal; true without one, false for a ratio that is no
        number."""
        if self.goal is None:
            return True
        return self.ratio >= self.goal if self.at_least else self.ratio <= self.goal

    @property
    def verdict(self) -> str:
        """ "met", "MISSED", or the reason why there is no goal."""
        if self.goal is None:
            return f"no goal: {self.no_goal}"
        return "met" if self.met else "MISSED"

    @property
    def wanted(self) -> str:
        """The goal as text: "<= 4", ">= 0.7", "-"."""
        return "-" if self.goal is None else f"{'>=' if self.at_least else '<='} {self.goal:g}"

    def line(self) -> str:
        """The figure as a line of the table under HEADER."""
        return (
            f"{self.name:<26}{self.p50:>14}{self.p99:>14}{self.floor:>12}{self.ratio:>9}"
            f"{self.wanted:>9}  {self.unit}; floor: {self.floor_name}"
        )


HEADER = f"{'figure':<26}{'p50':>14}{'p99':>14}{'floor':>12}{'ratio':>9}{'goal':>9}"


@dataclass(frozen=True)
class Bench:
    """What the benchmarks share. `quick`: the smallest loads that still measure anything."""

    root: Path
    socket: str
    floors: Path
    extents: int
    seals: list[int]
    quick: bool = False

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
    goal: float | None,
    figure: Sampler,
    floor: Sampler,
    rounds: int,
    unit: str = "us",
    no_goal: str = "",
) -> Figure:
    a: list[float] = []
    b: list[float] = []
    for _ in range(rounds):
        a += figure()
        b += floor()
    return figure_of(name, a, b, floor_name, goal, unit, no_goal)


def figure_of(
    name: str,
    samples: Sequence[float],
    floor: Sequence[float],
    floor_name: str,
    goal: float | None,
    unit: str = "us",
    no_goal: str = "",
) -> Figure:
    p50, p99, beneath = (
        np.percentile(samples, 50),
        np.percentile(samples, 99),
        np.percentile(floor, 50),
    )
    return Figure(
        name, unit, round(p50, 3), round(p99, 3), round(beneath, 3), floor_name,
        round(p50 / beneath, 2), goal, no_goal=no_goal,
    )  # fmt: skip
