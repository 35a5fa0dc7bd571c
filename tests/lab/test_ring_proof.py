"""Rings with bpf: the keeper proves by itself that nothing is left of what was given back."""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

import pytest

from sealsvc.client.ring import RingClient
from tests.lab.dax_files import make
from tests.lab.pmem import mounted_dax
from tests.ring.conftest import truncating
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
MiB = 1 << 20
BLOCK = 4096


def test_the_service_need_not_live(tmp_path: Path) -> None:
    """Without bpf a conflict would wait for the next one: it looks through the processes."""
    with mounted_dax("xfs") as root:
        path = make(root / "file", MiB)
        running = Running(tmp_path, [root], RISKS)
        running.start()
        try:
            running.ready()
            fd = os.open(path, os.O_RDWR)
            with RingClient(str(running.socket), timeout=PATIENCE) as client:
                registered = client.register(fd, grace=200)
                client.grant(registered, 0, MiB).give_back()
                mapping = mmap.mmap(fd, MiB)
                running.kill()
                with truncating(path, MiB - BLOCK) as process:
                    time.sleep(2)
                    assert process.poll() is None, "it is mapped still"
                    mapping.close()
                    running.start()
                    running.ready()
                client.grant(registered, 0, BLOCK).give_back()
                running.kill()
                with truncating(path, 0) as process:
                    assert process.wait(PATIENCE) == 0
                running.start()
                running.ready()
            os.close(fd)
        finally:
            running.end()
