"""Judging one operation among many guards of a file, beside a linear scan of the same guards."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.bench.figures import Bench, Figure, alternate

NATIVE = Path(__file__).parents[2] / "native"
SOURCES = ["gate/guards.c", "base/interval.c", "kernel/verdict.c"]
GOALS = {10: 1.0, 1_000: 0.05, 100_000: 0.005}
OPERATIONS = 2_000  # of one sample; a scan has fewer, so that it ends


def guards(_bench: Bench, rounds: int) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as made:
        program = Path(made, "guards")
        sources = [Path(__file__).with_name("guards.c"), *(NATIVE / path for path in SOURCES)]
        includes = [f"-I{NATIVE}", f"-I{NATIVE / 'include'}"]
        subprocess.run(["gcc", "-O2", *includes, "-o", program, *sources], check=True)

        def judged(how: str, count: int, operations: int) -> list[float]:
            command = [program, how, str(count), str(operations)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
            return [float(line) for line in done.stdout.split()]

        return [
            alternate(
                f"guards-{count}", "a linear scan of them", goal,
                lambda count=count: judged("set", count, OPERATIONS),
                lambda count=count: judged("scan", count, max(2, OPERATIONS * 10 // count)),
                rounds, unit="ns",
            )
            for count, goal in GOALS.items()
        ]  # fmt: skip
