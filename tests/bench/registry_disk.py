"""Grants while the registry's disk fails: `python -m tests.bench.registry_disk`.

A real service on an XFS, its registry on a disk of its own, 100 grants and returns each second. In
each round, with each fault: a second of them before, a second during the fault, and the fault is
mended. Goal: the median during the fault is at most twice that before, over all rounds. A goal that
is missed is printed so. Needs root.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from sealsvc.client import Client
from sealsvc.protocol.system import Status
from tests.support.registry_disk import FAULTS, RATE, grants, scratch_disk
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running, served

GOAL = 2.0
WELL_WITHIN = 120.0  # seconds


def well(client: Client) -> None:
    """Wait until the registry is written again."""
    deadline = time.monotonic() + WELL_WITHIN
    while (status := client.call(Status).result.registry).lag or status.troubles:
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def measure(root: Path, name: str, rounds: int, seconds: float) -> bool:
    (fault,) = (fault for fault in FAULTS if fault.__name__ == name)
    file = root / name
    file.write_bytes(os.urandom(1 << 20))
    before, during = list[float](), list[float]()
    with tempfile.TemporaryDirectory() as directory, scratch_disk(Path(directory)) as disk:
        registry = f'[registry]\ndirectory = "{disk.registry}"\n'
        with (
            served(Running(Path(directory), [root], RISKS + registry)) as running,
            Client(str(running.socket), timeout=60) as client,
        ):
            grants(client, file, seconds)
            pid = client.status().pid
            for _ in range(rounds):
                well(client)
                before += grants(client, file, seconds)
                mend = fault(disk)
                try:
                    during += grants(client, file, seconds)
                finally:
                    mend()
            well(client)
            assert client.status().pid == pid, "the service has ended"
    usual, now = float(np.median(before)), float(np.median(during))
    met = now <= GOAL * usual
    print(
        f"{name:<10}{usual * 1e3:8.2f} ms before{now * 1e3:8.2f} ms during{now / usual:7.2f} x"
        f"  goal {GOAL:g} {'met' if met else 'MISSED'}"
        f"  (p99 {np.percentile(before, 99) * 1e3:.2f}, {np.percentile(during, 99) * 1e3:.2f} ms)",
        flush=True,
    )
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help=f"of {RATE:g} grants each")
    asked = parser.parse_args()
    with mounted("xfs", mkfs_args=["-m", "reflink=1"]) as root:
        names = [fault.__name__ for fault in FAULTS]
        met = [measure(root, name, asked.rounds, asked.seconds) for name in names]
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
