"""What the tripwire costs: in-place writes of a bystander, with and without comparisons of maps."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sealsvc.client import Client
from sealsvc.linux import native
from sealsvc.protocol.seals import Return
from tests.bench.figures import Bench, Figure, figure_of
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running, served

WRITES = 20_000  # of a round and side: longer than the first two looks of the tripwire take


def tripwire(bench: Bench, rounds: int) -> list[Figure]:
    """pwrite(2) of 4 KiB into a sealed file of many extents: all of it is let through, and the
    service compares the file's map meanwhile. A service that is stopped (SIGSTOP) compares nothing,
    while the keeper judges as before: the floor. The second figure is the share of a processor that
    the service takes; monitor/tripwire.py pauses for 20 times of what a comparison took."""
    extents = max(1000, bench.extents // 100)
    watched: list[float] = []
    bare: list[float] = []
    shares: list[float] = []
    with tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as made, mounted("xfs") as root:
        path = _fragmented(root / "fragmented", extents)
        with (
            served(Running(Path(made), [root], RISKS)) as running,
            Client(str(running.socket)) as client,
        ):
            assert running.process is not None
            service = psutil.Process(running.process.pid)
            reply = client.grant(path=str(path), kind="shared")
            os.close(reply.fds[0])
            assert reply.seal.extents >= extents, reply.seal.extents
            for _ in range(rounds):
                before, began = _used(service), time.monotonic()
                watched += bench.floor("pwrite", WRITES, str(path))
                shares.append((_used(service) - before) / (time.monotonic() - began))
                with _stopped(service):
                    bare += bench.floor("pwrite", WRITES, str(path))
            client.call(Return, seal=reply.seal.id)
    return [
        figure_of(
            f"tripwire-pwrite-{extents}", watched, bare, "the same while nothing is compared", 1.05
        ),
        figure_of(
            f"tripwire-share-{extents}", shares, [1.0], "a processor", 0.1, unit="processors"
        ),
    ]


def _fragmented(path: Path, extents: int) -> Path:
    with path.open("w+b") as file:
        for at in range(extents):
            os.posix_fallocate(file.fileno(), at * 8192, 4096)
        native.fallocate(file.fileno(), 0, 0, extents * 8192)
        file.seek(0)
        file.write(b"\0" * (extents * 8192))
        os.fsync(file.fileno())
    return path


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def _stopped(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
