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

SIZE = 64 << 20
_SECONDS = 2
_GOAL = 1.02  # 0.98 of the device's rate


def sh(*command: object) -> str:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip


def load(node: str, workload: str, offset: int = 0, depth: int = 1) -> list[float]:
    """Microseconds for one request of 4 KiB, `depth` at a time."""
    engine = ["--ioengine=psync"] if depth == 1 else ["--ioengine=libaio", f"--iodepth={depth}"]
    said = sh(
        "fio", "--name=load", f"--filename={node}", *engine, "--direct=1", f"--rw={workload}",
        "--bs=4k", "--time_based", f"--runtime={_SECONDS}", f"--size={SIZE}",
        f"--offset={offset}", "--allow_file_create=0", "--output-format=json",
    )  # fmt: skip
    job = json.loads(said[said.index("{") :])["jobs"][0]
    return [1e6 / float(job["read" if workload == "randread" else "write"]["iops"])]


def export(rounds: int) -> Iterator[Figure]:
    """On dm-linear over persistent memory, as LVM makes it. The file is one extent, and the floor
    is the same bytes of the device beneath."""
    sh("modprobe", "dm-mod")
    sectors = int(Path("/sys/block/pmem0/size").read_text()) - 2048
    table = f"0 {sectors} linear /dev/pmem0 2048"
    sh("dmsetup", "create", "--noudevsync", "bench", "--table", table)
    with (
        mounted_dax("xfs", device="/dev/mapper/bench") as root,
        tempfile.TemporaryDirectory() as made,
        serving(Path(made), [root], RISKS) as socket,
    ):
        image = root / "image"
        with image.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE)
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
                    lambda workload=workload: load(info["device"], workload),
                    lambda workload=workload: load("/dev/pmem0", workload, found[0]["physical"]),
                    rounds,
                )
    sh("dmsetup", "remove", "--noudevsync", "--retry", "bench")
