"""An audit of very many seals, beside the bare FIEMAP calls that it cannot do without."""

from __future__ import annotations

import time

from sealsvc.client import Client
from sealsvc.protocol.system import Audit
from tests.bench.figures import Bench, Figure, alternate
from tests.bench.many_seals import BLOCK, many_seals

A_FILE = 32  # seals


def audit(bench: Bench, rounds: int, count: int = 10_000) -> Figure:
    """Microseconds for a seal."""
    paths = [bench.file(f"audit-{n}", A_FILE * BLOCK) for n in range(-(-count // A_FILE))]
    with Client(bench.socket) as client, many_seals(client, paths, count, A_FILE):

        def figure() -> list[float]:
            begun = time.perf_counter()
            report = client.call(Audit).result
            taken = (time.perf_counter() - begun) * 1e6
            assert (report.checked, report.drifted, report.unreadable) == (count, [], [])
            return [taken / count]

        def floor() -> list[float]:
            return bench.floor("fiemap-ranges", 1, str(BLOCK), str(A_FILE), *map(str, paths))

        return alternate(
            "audit-per-seal", "bare FIEMAP calls of the same ranges in C", 5.0,
            figure, floor, rounds,
        )  # fmt: skip
