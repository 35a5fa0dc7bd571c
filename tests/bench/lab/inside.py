"""What runs in the guest: the figures, written to the shared directory as lines of JSON."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from tests.bench.figures import HEADER, Figure
from tests.bench.lab.export import export
from tests.bench.lab.overhead import overhead
from tests.bench.lab.peer import peer
from tests.bench.lab.ublk import ublk
from tests.bench.validation import measure
from tests.lab.pmem import mounted_dax

SHARE = Path(os.environ["SEALSVC_LAB_SHARE"])


def validation(rounds: int) -> Iterator[Figure]:
    """1 GiB would not fit: 512 MiB of 4 KiB pages, and of 2 MiB pages."""
    size = 512 << 20
    for pages, pmd in (("4k", False), ("2m", True)):
        with mounted_dax("xfs" if not pmd else "ext4", pmd=pmd) as root:
            for found in measure(root / "mapped", size, rounds):
                yield Figure(
                    f"validate-{found.name}-{pages}", "ms", round(found.p50, 3), 0.0,
                    round(found.floor, 3), "pread of all its pagemap entries",
                    round(found.ratio, 2), 3.0,
                )  # fmt: skip


BENCHMARKS: dict[str, Callable[[int], Iterator[Figure]]] = {
    "peer": peer,
    "overhead": overhead,
    "validation": validation,
    "export": export,
    "ublk": ublk,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with (SHARE / "figures").open("a") as out, tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        print(HEADER)
        for name in options.names:
            for figure in BENCHMARKS[name](options.rounds):
                out.write(json.dumps(asdict(figure)) + "\n")
                out.flush()
                print(figure.line(), flush=True)


if __name__ == "__main__":
    main()
