"""The pause that each of 16 holders sees when their file is relocated: from the Recall in its hands
to the one that tells of the new map. It should not grow with the file: the floor is one of 64 MiB.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from sealsvc.client import Client
from sealsvc.protocol.relocation import Goal
from tests.bench.figures import Bench, Figure, alternate
from tests.copies.relocating import Holder, relocated

HOLDERS = 16
SMALL, LARGE = 64 << 20, 1 << 30
PIECE = 16 << 20
WITHIN = 4 << 20  # bytes that they store to all the time


def relocation(bench: Bench, rounds: int) -> Figure:
    files = {size: _file(bench.root / f"relocated-{size}", size) for size in (SMALL, LARGE)}

    def pauses(size: int) -> list[float]:
        with ExitStack() as stack:
            client = stack.enter_context(Client(bench.socket))
            holders = [
                stack.enter_context(Holder(bench.socket, files[size], number, WITHIN))
                for number in range(HOLDERS)
            ]
            job = relocated(client, files[size], Goal(to=str(bench.root)))
            assert job.result["moved"], job
            return [max(holder.pauses) * 1e3 for holder in holders]

    return alternate(
        "relocation-pause", f"the same with {SMALL >> 20} MiB instead of {LARGE >> 20}", 1.5,
        lambda: pauses(LARGE), lambda: pauses(SMALL), rounds, unit="ms",
    )  # fmt: skip


def _file(path: Path, size: int) -> Path:
    data = os.urandom(PIECE)
    with path.open("wb") as made:
        for _ in range(size // PIECE):
            made.write(data)
        os.fsync(made.fileno())
    return path
