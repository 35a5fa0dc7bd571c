"""Beside an on-access scanner that opens by path: nothing is opened while a guard is in force."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import List, Return
from tests.support.scratch import MiB, mounted
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

SCANNER = """
import ctypes, os, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
CONTENT, CLOEXEC, ADD, FILESYSTEM, OPEN_PERM = 0x4, 0x1, 0x1, 0x100, 0x10000
fan = libc.fanotify_init(CONTENT | CLOEXEC, os.O_RDONLY)
mark = libc.fanotify_mark
mark.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p]
if fan < 0 or mark(fan, ADD | FILESYSTEM, OPEN_PERM, -100, sys.argv[1].encode()):
    sys.exit(77)
print("ready", flush=True)
def answer(fd):
    os.write(fan, struct.pack("=iI", fd, 1))
    os.close(fd)
def scan(fd):
    try:
        os.close(os.open(os.readlink(f"/proc/self/fd/{fd}"), os.O_RDONLY))
    except OSError:
        pass
    answer(fd)
while True:
    data = os.read(fan, 65536)
    while data:
        length, _, _, _, _, fd, pid = struct.unpack_from("=IBBHQii", data)
        if pid == os.getpid():
            answer(fd)
        else:
            threading.Thread(target=scan, args=(fd,), daemon=True).start()
        data = data[length:]
"""


@contextmanager
def scanner(point: Path) -> Iterator[None]:
    command = [sys.executable, "-c", SCANNER, point]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip("no permission events here")
        try:
            yield
        finally:
            process.kill()


def refused(client: Client, fd: int, kind: str) -> Refusal | None:
    try:
        client.grant([fd], kind=kind, grace=60)
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.parametrize("kind", ["shared", "exclusive"])
def test_grants_and_a_restart(tmp_path: Path, kind: str) -> None:
    with mounted("ext4", 128 * MiB) as point, scanner(point):
        file = point / "file"
        file.write_bytes(bytes(MiB))
        running = Running(tmp_path, [point], RISKS)
        running.start()
        try:
            running.ready()
            with Client(str(running.socket), timeout=PATIENCE) as client:
                fd = os.open(file, os.O_RDWR)
                # The scanner may have it open a little longer than its opener waited.
                while (found := refused(client, fd, kind)) is not None:
                    assert found.code == "file-in-use"
                running.kill()
            running.start()
            running.ready()
            with Client(str(running.socket), timeout=PATIENCE) as client:
                [seal] = client.call(List).result.seals
                os.close(fd)
                assert client.call(Return, seal=seal.id).seal.state == "returned"
        finally:
            running.end()
