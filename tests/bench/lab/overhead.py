"""What the bpf enforcer costs those who have nothing to do with a seal: pwrite(2) of 4 KiB."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Status
from tests.bench.figures import Figure
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, Running

SHARE = Path(os.environ.get("SEALSVC_LAB_SHARE", "."))
WRITES = 4000


def overhead(rounds: int) -> Iterator[Figure]:
    """Each round is compared with what was measured before and after it, without programs."""
    samples: dict[str, list[float]] = {"without": [], "unsealed": [], "sealed": []}
    ratios: dict[str, list[float]] = {"unsealed": [], "sealed": []}
    with mounted_dax("xfs", reflink=True) as root, tempfile.TemporaryDirectory() as made:
        for name in ("sealed", "bare"):
            (root / name).write_bytes(os.urandom(1 << 20))
        os.sync()
        running = Running(Path(made), [root], RISKS + '[enforcers]\nuse = ["bpf"]\n')
        before = _writes(root / "bare")
        for _ in range(rounds):
            running.start()
            try:
                running.ready()
                loaded = _with_bpf(running, root)
            finally:
                running.end()  # with nothing sealed it takes its programs along
            after = _writes(root / "bare")
            without = (np.median(before) + np.median(after)) / 2
            for name, found in loaded.items():
                samples[name] += found
                ratios[name].append(float(np.median(found) / without))
            samples["without"] += after
            before = after
    for name, goal in (("unsealed", 1.02), ("sealed", 1.05)):
        p50, p99 = np.percentile(samples[name], (50, 99))
        yield Figure(
            f"pwrite-{name}-bpf", "us", round(p50, 3), round(p99, 3),
            round(float(np.median(samples["without"])), 3), "pwrite with no program loaded",
            round(float(np.median(ratios[name])), 3), goal,
        )  # fmt: skip


def _with_bpf(running: Running, root: Path) -> dict[str, list[float]]:
    """Twice of each, in turn."""
    found: dict[str, list[float]] = {"unsealed": [], "sealed": []}
    with Client(str(running.socket)) as client:
        enforcers = {e.name: e for e in client.call(Status).result.enforcers}
        assert enforcers["bpf"].available, enforcers["bpf"].reason
        reply = client.grant(path=str(root / "sealed"), kind="shared", conflict="refuse")
        os.close(reply.fds[0])
        for _ in range(2):
            found["unsealed"] += _writes(root / "bare")
            found["sealed"] += _writes(root / "sealed")
        client.call(Return, seal=reply.seal.id)
    return found


def _writes(path: Path) -> list[float]:
    command = [SHARE / "floors", "pwrite", str(WRITES), path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return [float(line) for line in done.stdout.split()]
