"""Grants that come and go under an intruder who never rests: never drift, never a stuck waiter."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.linux.native import read_extents
from sealsvc.protocol.seals import Return

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

HAMMER = """
import ctypes, os, random, sys
libc = ctypes.CDLL(None, use_errno=True)
path, held = sys.argv[1], sys.argv[2] == "held"
fd = os.open(path, os.O_RDWR)
data = os.urandom(65536)
print(flush=True)
while True:
    use = fd if held else os.open(path, os.O_RDWR)
    offset = random.randrange(16) * 65536
    try:
        match random.randrange(4):
            case 0:
                libc.fallocate(use, 3, ctypes.c_long(offset), ctypes.c_long(65536))
            case 1:
                os.truncate(path, offset)
            case 2:
                os.ftruncate(use, offset)
            case 3:
                libc.fallocate(use, 16, ctypes.c_long(offset), ctypes.c_long(65536))
        os.truncate(path, 1 << 20)
        for at in range(0, 1 << 20, 65536):
            os.pwrite(use, data, at)
        os.fsync(use)
    except OSError:
        pass
    if not held:
        os.close(use)
"""


ENOUGH = 20  # grants


@pytest.mark.parametrize("manner", ["held", "opening"])
def test_an_intruder_never_moves_a_sealed_block(client: Client, file: Path, manner: str) -> None:
    intruder = subprocess.Popen(
        [sys.executable, "-c", HAMMER, str(file), manner], stdout=subprocess.PIPE
    )
    assert intruder.stdout is not None
    intruder.stdout.readline()
    granted = 0
    refusals: dict[str, int] = {}
    fd = os.open(file, os.O_RDONLY)
    deadline = time.monotonic() + 8
    try:
        # On a slow machine, for as long as it takes.
        while granted <= ENOUGH or time.monotonic() < deadline:
            try:
                reply = client.grant(
                    path=str(file), kind="shared", offset=0, length=65536, grace=30
                )
            except Refusal as refusal:
                refusals[refusal.code] = refusals.get(refusal.code, 0) + 1
                continue
            granted += 1
            before = read_extents(fd, reply.seal.effective)
            time.sleep(0.001 * (granted % 4))
            after = read_extents(fd, reply.seal.effective)
            assert extents.same(before, after, reply.seal.effective), "drift"
            os.close(reply.fds[0])
            client.call(Return, seal=reply.seal.id)
    finally:
        intruder.kill()
        intruder.wait()
        intruder.stdout.close()
        os.close(fd)
    print(f"{manner}: {granted} grants, {refusals}")
    assert set(refusals) <= {"extent-unsuitable", "try-later", "beyond-eof", "file-in-use"}
