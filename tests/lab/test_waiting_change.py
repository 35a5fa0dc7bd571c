"""A change that was let through before the grant, and waits inside the file system for a page.

It sleeps there interruptibly, as one that waits for an answer does, but goes on afterwards. What
keeps the grant from being made meanwhile is the inode's lock, or the bpf enforcer's own list.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.linux.native import ffi, lib
from tests.lab.dax_files import make
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
MiB = 1 << 20
PUNCHES = """
import os, sys
from sealsvc.doctor import syscalls
syscalls.fallocate(os.open(sys.argv[1], os.O_RDWR), 0x02 | 0x01, 0, 65536)
"""


@contextmanager
def first_page_in_use(path: Path) -> Iterator[None]:
    """By a reference in a pipe, and by a mapping, without which older kernels do not look."""
    ends = ffi.new("int[2]")
    fd = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(fd, MiB, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
            assert mapping[0] == 0
            assert lib.seal_pin(fd, 0, ends) == 0
            yield
    finally:
        for end in (*ends, fd):
            os.close(end)


@contextmanager
def punching(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", PUNCHES, path])
    try:
        until(lambda: "dax" in Path(f"/proc/{process.pid}/wchan").read_text(), PATIENCE)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("enforcer", ["fanotify", "bpf"])
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_no_seal_is_granted_before_it_has_ended(fstype: str, enforcer: str, tmp_path: Path) -> None:
    with mounted_dax(fstype) as root, ThreadPoolExecutor() as pool:
        running = Running(tmp_path, [root], f'{RISKS}[enforcers]\nuse = ["{enforcer}"]\n')
        running.start()
        try:
            running.ready()
            file = make(root / "file", MiB)
            with ExitStack() as stack:
                page = stack.enter_context(ExitStack())
                page.enter_context(first_page_in_use(file))
                intruder = stack.enter_context(punching(file))
                asked = pool.submit(ask, running, file)
                with suppress(NotYet):  # it waits for the inode's lock
                    assert asked.result(2) == "try-later"
                assert intruder.poll() is None
                page.close()
                assert intruder.wait(PATIENCE) == 0
            # What it would have sealed is a hole now.
            assert asked.result(PATIENCE) in {"try-later", "extent-unsuitable"}
        finally:
            running.end()


def ask(running: Running, file: Path) -> str:
    """The code that a grant is refused with."""
    with Client(str(running.socket), timeout=PATIENCE) as client:
        try:
            reply = client.grant(path=str(file), kind="shared", conflict="refuse", length=65536)
        except Refusal as refusal:
            return refusal.code
    os.close(reply.fds[0])
    return "granted"
