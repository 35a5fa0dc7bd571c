"""One process with many seals costs the service one pidfd, and its end is told to all of them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import List
from sealsvc.protocol.system import Status
from tests.service.test_seal_ends import holding
from tests.support.service import RISKS, Running
from tests.support.waiting import until

pytestmark = pytest.mark.kernel
MANY = 30  # beside the first
MORE = f"""
seals = [client.grant(path=sys.argv[2], kind="shared") for _ in range({MANY})]
for seal in seals:
    os.close(seal.fds[0])
print("all", flush=True)
time.sleep(600)
"""


def pidfds(running: Running, pid: int) -> int:
    """How many pidfds of `pid` the service has open; -1: of processes that have ended."""
    assert running.process is not None
    own = Path(f"/proc/{running.process.pid}")
    found = 0
    for link in (own / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            if "pidfd" in os.readlink(link):
                lines = (own / "fdinfo" / link.name).read_text().splitlines()
                found += f"Pid:\t{pid}" in lines
    return found


def test_many_seals_of_one_process(root: Path, file: Path, tmp_path: Path) -> None:
    running = Running(tmp_path, [root], RISKS)
    running.start()
    running.ready()
    try:
        with holding(str(running.socket), file, MORE) as (process, _):
            assert process.stdout is not None
            assert process.stdout.readline() == b"all\n"
            assert 1 <= pidfds(running, process.pid) <= 2  # as a client, and as a holder
            # Nor do the next service's seals have one each.
            running.kill()
            running.start()
            running.ready()
            with Client(str(running.socket)) as client:
                assert client.call(Status).result.seals == {"granted": MANY + 1}
                assert pidfds(running, process.pid) == 1
                process.kill()
                until(lambda: client.call(List).result.seals == [])
                until(lambda: pidfds(running, -1) + pidfds(running, process.pid) == 0)
    finally:
        running.end()
