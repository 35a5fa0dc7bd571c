"""A ublk export against the kernel's loop device, and against a ublk target that does nothing."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figures import Figure, alternate
from tests.bench.lab.export import SIZE, load, sh
from tests.exports.exporting import Exports
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, ROOT, serving

_LOOP_GOAL = 1.0
_NULL_GOAL = 1.11  # 0.9 of its rate
_DEPTH = 16
_QUEUE = 64  # requests that a queue has room for, of both ublk targets


def written(path: Path) -> Path:
    """A file of SIZE bytes, all of them written."""
    with path.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    return path


@contextmanager
def _loop(file: Path) -> Iterator[str]:
    node = sh("losetup", "--find", "--show", "--direct-io=on", file).strip()
    try:
        yield node
    finally:
        sh("losetup", "--detach", node)


@contextmanager
def _null() -> Iterator[str]:
    program = next((ROOT / "build" / "native").rglob("ublk-null"))
    with subprocess.Popen([program, str(SIZE)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def ublk(rounds: int) -> Iterator[Figure]:
    """Files of an XFS with DAX, 16 requests at a time: served from the mapping by us, and by
    direct I/O by the loop device of the same kernel."""
    sh("modprobe", "-a", "ublk_drv", "loop")
    with (
        mounted_dax("xfs") as root,
        tempfile.TemporaryDirectory() as made,
        serving(Path(made), [root], RISKS) as socket,
        _loop(written(root / "theirs")) as loop,
        _null() as null,
    ):
        (Path(made) / "exports").mkdir()
        exports = Exports(Path(made) / "exports", socket)
        image = written(root / "ours")
        depth = f"depth={_QUEUE}"
        with exports.serving("ublk", "disk", image, "-O", depth) as info:
            node = info["device"]
            for workload in ("randread", "randwrite"):
                yield alternate(
                    f"ublk-{workload}", "the kernel's loop device, direct I/O", _LOOP_GOAL,
                    lambda workload=workload: load(node, workload, depth=_DEPTH),
                    lambda workload=workload: load(loop, workload, depth=_DEPTH),
                    rounds,
                )  # fmt: skip
            yield alternate(
                "ublk-null-randread", "a ublk target that does nothing", _NULL_GOAL,
                lambda: load(node, "randread", depth=_DEPTH),
                lambda: load(null, "randread", depth=_DEPTH),
                rounds,
            )  # fmt: skip
