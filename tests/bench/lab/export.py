"""A dm export against the device that its file lies on, at the same places, by fio."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.bench.figures import Figure, alternate
from tests.exports.exporting import Exports
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, serving

_SIZE = 64 << 20
_SECONDS = 2
_GOAL = 1.02  # 0.98 of the device's rate


def _sh(*command: object) -> str:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip


def _load(node: str, workload: str, offset: int) -> list[float]:
    """Microseconds for one request."""
    said = _sh(
        "fio", "--name=load", f"--filename={node}", "--ioengine=psync", "--direct=1",
        f"--rw={workload}", "--bs=4k", "--time_based", f"--runtime={_SECONDS}", f"--size={_SIZE}",
        f"--offset={offset}", "--allow_file_create=0", "--output-format=json",
    )  # fmt: skip
    job = json.loads(said[said.index("{") :])["jobs"][0]
    return [1e6 / float(job["read" if workload == "randread" else "write"]["iops"])]


def export(rounds: int) -> Iterator[Figure]:
    """On dm-linear over persistent memory, as LVM makes it. The file is one extent, and the floor
    is the same bytes of the device beneath."""
    _sh("modprobe", "dm-mod")
    sectors = int(Path("/sys/block/pmem0/size").read_text()) - 2048
    table = f"0 {sectors} linear /dev/pmem0 2048"
    _sh("dmsetup", "create", "--noudevsync", "bench", "--table", table)
    with (
        mounted_dax("xfs", device="/dev/mapper/bench") as root,
        tempfile.TemporaryDirectory() as made,
        serving(Path(made), [root], RISKS) as socket,
    ):
        image = root / "image"
        with image.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _SIZE)
        (Path(made) / "exports").mkdir()
        exports = Exports(Path(made) / "exports", socket)
        with exports.serving("dm", "disk", image) as info:
            found = json.loads(exports.map("--static", "json", image))["pieces"]
            assert len(found) == 1, "the file is in pieces: the device is no floor"
            for workload in ("randread", "randwrite"):
                yield alternate(
                    f"dm-{workload}",
                    "the device beneath",
                    _GOAL,
                    lambda workload=workload: _load(info["device"], workload, 0),
                    lambda workload=workload: _load("/dev/pmem0", workload, found[0]["physical"]),
                    rounds,
                )
    _sh("dmsetup", "remove", "--noudevsync", "--retry", "bench")
