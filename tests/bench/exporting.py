"""NBD exports against the better of nbdkit's file plugin and qemu-nbd, by fio's NBD client."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sealsvc.exports.nbd import Nbd, plugin
from tests.bench.figures import Bench, Figure, figure_of

_MiB = 1 << 20
_SIZE = 64 * _MiB
_SECONDS = 1.0
_GOAL = 1.0
_WORKLOADS = ("randread", "randwrite")

_Server = tuple[list[str], Path]  # the command, and the socket where it listens


@contextmanager
def _server(command: list[str], socket: Path) -> Iterator[str]:
    """Its URI, while it runs."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert process.poll() is None, f"{command[0]} has ended"
            assert time.monotonic() < deadline, f"{command[0]} does not listen"
            time.sleep(0.01)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        process.terminate()
        process.wait()
        with suppress(FileNotFoundError):
            socket.unlink()


def _load(uri: str, workload: str) -> float:
    """Microseconds for one request of 4 KiB, 16 at a time."""
    done = subprocess.run(
        [
            "fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", f"--rw={workload}", "--bs=4k",
            "--iodepth=16", "--time_based", f"--runtime={_SECONDS}", f"--size={_SIZE}",
            "--output-format=json",
        ],
        capture_output=True, text=True, check=True, cwd="/tmp",
    )  # fmt: skip
    said = done.stdout[done.stdout.index("{") :]  # notes may stand before it
    job = json.loads(said)["jobs"][0]
    return 1e6 / float(job["read" if workload == "randread" else "write"]["iops"])


def _image(bench: Bench, name: str) -> Path:
    path = bench.root / name
    with path.open("wb") as file:
        for _ in range(_SIZE // _MiB):
            file.write(os.urandom(_MiB))
        os.fsync(file.fileno())
    return path


def nbd(bench: Bench, rounds: int) -> list[Figure]:
    """Through the page cache (io=mapped), and past it (io=direct: not in nbdkit's file plugin)."""
    if missing := Nbd.missing() or (not shutil.which("fio") and "fio is not installed"):
        print(f"nbd: not measured: {missing}")
        return []
    found = []
    with tempfile.TemporaryDirectory() as made:
        at = Path(made)
        ours = ["nbdkit", "--foreground", "--unix", str(at / "ours"), str(plugin()),
                str(_image(bench, "ours")), f"socket={bench.socket}"]  # fmt: skip
        peer = str(_image(bench, "peer"))
        file = ["nbdkit", "--foreground", "--unix", str(at / "file"), "file", peer]
        qemu = ["qemu-nbd", "--socket", str(at / "qemu"), "--format", "raw", "--persistent",
                "--shared", "0"]  # fmt: skip
        peers = {
            "mapped": [(file, at / "file"), ([*qemu, "--cache=writeback", peer], at / "qemu")],
            "direct": [([*qemu, "--cache=none", "--aio=io_uring", peer], at / "qemu")],
        }
        for io, servers in peers.items():
            for workload in _WORKLOADS:
                found.append(
                    _figure(workload, io, ([*ours, f"io={io}"], at / "ours"), servers, rounds)
                )
    return found


def _figure(workload: str, io: str, ours: _Server, peers: list[_Server], rounds: int) -> Figure:
    """Against the peer whose median is less: the better one of each round would be the luckier of
    several samples, which ours has but one of."""
    samples: list[list[float]] = [[] for _ in (ours, *peers)]
    for _ in range(rounds):
        for (command, socket), times in zip((ours, *peers), samples, strict=True):
            with _server(command, socket) as uri:
                times.append(_load(uri, workload))
    names = "nbdkit file, qemu-nbd" if io == "mapped" else "qemu-nbd, cache=none"
    floor = min(samples[1:], key=statistics.median)
    name = f"nbd-{io}-{workload}"
    return figure_of(name, samples[0], floor, f"the better of: {names}", _GOAL)
