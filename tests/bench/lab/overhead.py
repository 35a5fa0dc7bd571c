"""What the bpf enforcer costs those who have nothing to do with a seal: pwrite(2) of 4 KiB."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sealsvc.client import Client
from sealsvc.messages import Return, Status
from tests.bench.__main__ import Figure
from tests.lab.pmem import mounted_dax
from tests.service.conftest import RISKS, Running

SHARE = Path(os.environ.get("SEALSVC_LAB_SHARE", "."))
WRITES = 4000


def overhead(rounds: int) -> Iterator[Figure]:
    with mounted_dax("xfs", reflink=True) as root, tempfile.TemporaryDirectory() as made:
        for name in ("sealed", "bare"):
            (root / name).write_bytes(os.urandom(1 << 20))
        os.sync()
        samples: dict[str, list[float]] = {"without": [], "unsealed": [], "sealed": []}
        running = Running(Path(made), [root], RISKS + '[enforcers]\nuse = ["bpf"]\n')
        for _ in range(rounds):
            # With nothing sealed a service that ends takes its programs along.
            samples["without"] += _writes(root / "bare")
            running.start()
            try:
                running.ready()
                _with_bpf(running, root, samples)
            finally:
                running.end()
        for name, goal in (("unsealed", 1.02), ("sealed", 1.05)):
            p50, p99, floor = (
                np.percentile(samples[name], 50),
                np.percentile(samples[name], 99),
                np.percentile(samples["without"], 50),
            )
            yield Figure(
                f"pwrite-{name}-bpf", "us", round(p50, 3), round(p99, 3), round(floor, 3),
                "pwrite with no program loaded", round(p50 / floor, 3), goal,
            )  # fmt: skip


def _with_bpf(running: Running, root: Path, samples: dict[str, list[float]]) -> None:
    with Client(str(running.socket)) as client:
        enforcers = {e.name: e for e in client.call(Status).result.enforcers}
        assert enforcers["bpf"].available, enforcers["bpf"].reason
        reply = client.grant(path=str(root / "sealed"), kind="shared", conflict="refuse")
        os.close(reply.fds[0])
        samples["unsealed"] += _writes(root / "bare")
        samples["sealed"] += _writes(root / "sealed")
        client.call(Return, seal=reply.seal.id)


def _writes(path: Path) -> list[float]:
    command = [SHARE / "floors", "pwrite", str(WRITES), path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return [float(line) for line in done.stdout.split()]
