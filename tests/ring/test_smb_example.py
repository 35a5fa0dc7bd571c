"""examples/smb: built by its Makefile, with a service, a server and eight clients that never stop
writing. One region is asked back and sealed again, unnoticed by the others; then all are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import RecallSeals
from sealsvc.protocol.system import Audit
from tests.ring.conftest import ROOT, intruder
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]  # it compiles

CLIENTS, REGION = 8, 256 << 10
PUNCH = """
fd = os.open(sys.argv[1], os.O_RDWR)
from sealsvc.linux import native
native.fallocate(fd, 3, int(sys.argv[2]), int(sys.argv[3]))
"""


class Clients:
    """Processes of the example's client, and what each has said."""

    def __init__(self, program: Path, socket: Path, directory: Path, stack: ExitStack) -> None:
        self.logs = [directory / f"client-{number}" for number in range(CLIENTS)]
        self.processes = []
        for log in self.logs:
            with log.open("w") as out:
                process = subprocess.Popen(
                    [program, socket], stdin=subprocess.PIPE, stdout=out, stderr=out
                )
            stack.enter_context(process)
            stack.callback(process.kill)
            self.processes.append(process)
            # One after the other: the regions are theirs in this order.
            until(lambda log=log: "sealed" in log.read_text())

    def said(self, number: int) -> list[str]:
        return self.logs[number].read_text().splitlines()

    def end(self) -> None:
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait(PATIENCE) for process in self.processes] == [0] * CLIENTS


@pytest.fixture
def programs(installed: Path, tmp_path: Path) -> Path:
    source = ROOT / "examples" / "smb"
    subprocess.run(
        ["make", "-C", source, f"OUT={tmp_path}", "CFLAGS=-O2 -Wall -Wextra -Werror"],
        env={**os.environ, "PKG_CONFIG_PATH": str(installed / "lib/pkgconfig")},
        check=True,
        timeout=100,
    )
    return tmp_path


@pytest.fixture
def server(
    programs: Path,
    installed: Path,
    running: Running,
    file: Path,
    tmp_path: Path,
) -> Iterator[Path]:
    socket = tmp_path / "share.sock"
    environment = {
        **os.environ,
        "SEALSVC_SOCKET": str(running.socket),
        "LD_LIBRARY_PATH": str(installed / "lib"),
    }
    process = subprocess.Popen(
        [programs / "server", file, socket], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "serving\n"
        yield socket
        assert process.poll() is None, "the server has ended"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_region_is_asked_back_and_sealed_again(
    server: Path, programs: Path, running: Running, file: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        clients = Clients(programs / "client", server, tmp_path, stack)
        with intruder(PUNCH, file, 3 * REGION, REGION) as punching:
            pass
        assert punching.returncode == 0
        again = ["region 3: sealed", "region 3: asked back", "region 3: sealed"]
        until(lambda: clients.said(3) == again)
        with file.open("rb") as opened:  # the change was made, but for what was written since
            opened.seek(3 * REGION + 4096)
            assert opened.read(REGION - 4096) == bytes(REGION - 4096)
        others = [number for number in range(CLIENTS) if number != 3]
        assert [clients.said(n) for n in others] == [[f"region {n}: sealed"] for n in others]
        with Client(str(running.socket)) as client:
            # A map that moved under one of the seals would be told of.
            assert client.call(Audit).result.drifted == []
            client.call(RecallSeals, path=str(file), wait=True)
            until(lambda: all(lines[-1].endswith(": sealed") and "asked back" in lines[-2]
                              for lines in map(clients.said, range(CLIENTS))))  # fmt: skip
            assert client.call(Audit).result.drifted == []
        clients.end()
        for number in range(CLIENTS):
            region, _, told = clients.said(number)[-1].partition(": ")
            writes, pauses = told.split(" writes, ")
            assert region == f"region {number}"
            assert int(writes) > 0
            assert pauses == ("2 pauses" if number == 3 else "1 pauses")
