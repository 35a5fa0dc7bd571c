"""The engine of protection information beside the bare CRC calls that it makes."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.bench.figures import Bench, Figure

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native/integrity"
GOAL = 1.11  # a rate of 0.9


def engine(bench: Bench, rounds: int) -> list[Figure]:
    """Nanoseconds of CPU time for a call with so many bytes. The floor is ISA-L's own call for each
    block (of crc64, which ISA-L 2.30 does not have, our own); the peer is a plain read."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "pi")
        sources = [Path(__file__).with_name("pi.c"), *sorted(NATIVE.glob("*.c"))]
        options = ["-O2", "-D_GNU_SOURCE", "-DSEAL_WITH_ISAL", f"-I{NATIVE}", "-o", program]
        libraries = ["-lisal", "-lcrypto", "-lpthread"]
        subprocess.run(["gcc", *options, *sources, *libraries], check=True)
        told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    figures = []
    for line in told.splitlines():
        name, size, *taken = line.split()
        generate, verify, bare, read = map(float, taken)
        for what, time in (("generate", generate), ("verify", verify)):
            ratio, peer = round(time / bare, 2), {"of a plain read": round(time / read, 2)}
            line = f"{name}-{what}-{size}"
            figures.append(
                Figure(line, "ns", time, time, bare, "the bare CRC call", ratio, GOAL, peer)
            )
    return figures


INTEGRITY_BENCHMARKS = {"integrity": engine}
