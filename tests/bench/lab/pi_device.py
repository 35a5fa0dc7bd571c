"""The device path against a bare io_uring loop on the same blocks: `python -m
tests.bench.lab.pi_device`.

Boots a guest with an NVMe namespace and a scsi_debug disk. One request is under way at a time. The
goal is 0.95 of the bare loop's rate. Exits with 1 when it is missed, with 77 where there is no lab.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

from sealsvc.client import Client
from sealsvc.integrity.block_device import opened
from sealsvc.protocol.pi_device import PiChannel
from sealsvc.protocol.seals import Extents, Return
from tests.lab import DEFAULT, unavailable

_ROOT = Path(__file__).parents[3]
_GOAL = 0.95
_ROUNDS = 9
_NO_LAB = 77


def build(program: Path) -> None:
    """From the sources of the library and of the service: the same calls on both sides."""
    native = _ROOT / "native"
    device = native / "integrity" / "device"
    include = [f"-I{native / 'libseal'}", f"-I{device}"]
    sources = [Path(__file__).with_suffix(".c"), native / "libseal" / "pi.c", device / "uring.c"]
    command = ["gcc", "-O2", "-D_GNU_SOURCE", *include, "-o", program, *sources]
    subprocess.run(command, check=True, timeout=120)


def measure(program: Path, socket: str, file: Path, device: Path) -> int:
    """How many goals are missed."""
    with Client(socket, timeout=300.0) as client, ExitStack() as undo:
        reply = client.grant(path=str(file), kind="exclusive")
        undo.callback(client.call, Return, seal=reply.seal.id)
        undo.callback(os.close, reply.fds[0])
        [extent] = client.call(Extents, seal=reply.seal.id).result.extents
        made = client.call(PiChannel, seal=reply.seal.id, bytes=2 << 20)
        disk = opened(os.stat(device).st_rdev, writable=True)
        facts = made.result.device
        numbers = (*made.fds, disk, extent.physical, facts.interval, facts.metadata, _ROUNDS)
        try:
            done = subprocess.run(
                [program, *map(str, numbers)],
                pass_fds=(*made.fds, disk), capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            for fd in (*made.fds, disk):
                os.close(fd)
        assert done.returncode == 0, done.stderr
        return show(device.name, done.stdout)


def show(device: str, lines: str) -> int:
    missed = 0
    rounds = defaultdict[tuple[str, int], list[tuple[float, float]]](list)
    for line in lines.splitlines():
        name, size, figure, floor = line.split()
        rounds[name, int(size)].append((float(figure), float(floor)))
    for (name, size), pairs in rounds.items():
        figure = statistics.median(pair[0] for pair in pairs)
        floor = statistics.median(pair[1] for pair in pairs)
        rate = floor / figure
        missed += rate < _GOAL
        said = "met" if rate >= _GOAL else "MISSED"
        print(
            f"{device:8} {name:5} {size >> 10:5} KiB  channel {figure:9.0f} us  bare"
            f" {floor:9.0f} us  rate {rate:.2f} of bare (goal {_GOAL}: {said})",
            flush=True,
        )
    return missed


def inside(program: Path) -> int:
    missed = 0
    from tests.lab.pi_devices import mounted, nvme_disk, scsi_disk
    from tests.support.service import RISKS, Running
    from tests.support.waiting import until

    with tempfile.TemporaryDirectory() as name, ExitStack() as undo:
        base = Path(name)
        running = Running(base, [base], RISKS)
        running.start()
        undo.callback(running.end)
        for disk in (nvme_disk(1), undo.enter_context(scsi_disk(1))):
            with mounted(disk, base / disk.name) as point:
                file = point / "file"
                file.write_bytes(os.urandom(1 << 20))
                os.sync()
                until(running.socket.exists, 900.0, "the service's socket")
                missed += measure(program, str(running.socket), file, disk)
    return missed


def main() -> None:
    if len(sys.argv) == 2:
        sys.exit(min(1, inside(Path(sys.argv[1]))))
    if reason := unavailable(DEFAULT):
        print(f"lab: {reason}", file=sys.stderr)
        sys.exit(_NO_LAB)
    program = _ROOT / "build" / "pi-device-bench"
    build(program)
    lab = ["-m", "tests.lab", "--pmem", "0", "--cpus", "2", "--nvme", "ms=8,pi=1", "--"]
    own = ["-m", "tests.bench.lab.pi_device", str(program)]
    status = subprocess.run([sys.executable, *lab, sys.executable, *own], check=False).returncode
    sys.exit(status)


if __name__ == "__main__":
    main()
