"""What a run of the benchmarks came to: each figure with its goal, and one status."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from tests.bench.figures import HEADER, Bench, Figure

Benchmark = Callable[[Bench, int], Figure | list[Figure]]


@dataclass
class Outcome:
    """Collects figures. `failed` and `left_out` have a reason by what was not measured; what could
    not be measured although it should have been is as bad as a goal that is missed."""

    out: TextIO
    figures: list[Figure] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, figures: Iterable[Figure]) -> None:
        """Print figures, and write them as lines of JSON."""
        for figure in figures:
            self.figures.append(figure)
            self.out.write(json.dumps(asdict(figure)) + "\n")
            self.out.flush()
            print(figure.line(), flush=True)

    def read(self, path: Path) -> None:
        """Add the figures that another run has written to `path`, without printing them again."""
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            self.figures.append(Figure(**json.loads(line)))
            self.out.write(line + "\n")

    def measure(self, name: str, benchmark: Benchmark, bench: Bench, rounds: int) -> None:
        """Run one benchmark. When it raises, it has failed, and the others go on."""
        try:
            measured = benchmark(bench, rounds)
        except Exception as error:
            traceback.print_exc()
            self.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            self.add(measured if isinstance(measured, list) else [measured])

    @property
    def status(self) -> int:
        """0: every goal is met; 1: one is missed, something failed, or nothing was measured."""
        missed = any(not figure.met for figure in self.figures)
        return int(missed or bool(self.failed) or not self.figures)

    def summary(self) -> str:
        """The verdict on each figure, what was not measured, and how many goals were met."""
        lines = [
            f"{figure.name:<28}{figure.ratio:>9}{figure.wanted:>9}  {figure.verdict}"
            for figure in self.figures
        ]
        lines += [f"{name:<28}{'':>9}{'':>9}  FAILED: {why}" for name, why in self.failed.items()]
        lines += [
            f"{name:<28}{'':>9}{'':>9}  left out: {why}" for name, why in self.left_out.items()
        ]
        aimed = [figure for figure in self.figures if figure.goal is not None]
        met = sum(figure.met for figure in aimed)
        lines.append(
            f"{met} of {len(aimed)} goals met, {len(aimed) - met} missed,"
            f" {len(self.figures) - len(aimed)} figures without a goal, {len(self.failed)} failed"
        )
        return "\n".join(lines)


def begin() -> None:
    """Print the head of the table."""
    print(HEADER, flush=True)


def end(outcome: Outcome) -> int:
    """Print the summary; returns the status to exit with."""
    print(f"\n{outcome.summary()}", flush=True)
    sys.stderr.flush()
    return outcome.status
