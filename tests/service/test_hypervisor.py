"""examples/hypervisor: QEMU as a holder, whose guest's memory is the sealed file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import List
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

EXAMPLE = Path(__file__).parents[2] / "examples/hypervisor/run-guest"
MiB = 1 << 20
TRUNCATE = "import os, sys; os.truncate(sys.argv[1], 4096)"
BASE_MEMORY = 0x413  # in the BIOS data area: KiB of memory below 640 KiB, found by the firmware


@pytest.mark.kernel
@pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86 is not installed"
)
def test_a_guest_gives_its_memory_back_when_it_is_recalled(root: Path, tmp_path: Path) -> None:
    running = Running(tmp_path, [root])
    running.start()
    try:
        running.ready()
        guest_gives_back(running, root)
    finally:
        running.end()


def _peek(pid: int, file: Path, offset: int, length: int) -> bytes:
    """What the holder's mapping of the file has at `offset`: nobody else may open the file."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(file) and int(fields[2], 16) == 0:
            with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as mem:
                return os.pread(mem.fileno(), length, int(fields[0].split("-")[0], 16) + offset)
    return b""


def guest_gives_back(running: Running, root: Path, patience: float = PATIENCE) -> None:
    memory = root / "guest-memory"
    memory.write_bytes(bytes(64 * MiB))
    hold = ["hold", "--socket", running.socket, "--grace", "100s", memory, "--fd", "9", "--"]
    guest = subprocess.Popen([sys.executable, "-m", "sealsvc.cli.sealctl", *hold, EXAMPLE])
    intruder = None
    try:
        with Client(str(running.socket), timeout=PATIENCE) as client:
            until(lambda: bool(client.call(List).result.seals), patience)
            seal = client.call(List).result.seals[0]
            # The firmware runs from the sealed file: it leaves its findings there.
            until(lambda: _peek(seal.holder.pid, memory, BASE_MEMORY, 2) == b"\x7f\x02", patience)
            intruder = subprocess.Popen([sys.executable, "-c", TRUNCATE, memory])
            assert intruder.wait(patience) == 0
            until(lambda: guest.poll() is not None, patience)
            assert client.call(List).result.seals == []
        assert memory.stat().st_size == 4096
        assert memory.read_bytes()[BASE_MEMORY : BASE_MEMORY + 2] == b"\x7f\x02"
    finally:
        for process in filter(None, (guest, intruder)):
            process.kill()
            process.wait()
        memory.unlink(missing_ok=True)
