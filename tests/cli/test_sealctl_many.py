"""Ten thousand seals: the list and the history have them all, each once, on a terminal of 80
columns and in a pipe. (How long that takes is a figure of `./dev bench lists`.)"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest
from fake_daemon import FakeDaemon, seal
from sealctl_process import Start

from sealsvc.cli.units import exact_range
from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.protocol.history import History, SealHistory, SealRecord
from sealsvc.protocol.seals import List, SealInfo, SealPage
from tests.api.running import ROOT, service, wait_for

COUNT, PAGE = 10_000, 80
PATH = "/pmem/customers/of-the-first-quarter/volumes/with-a-long-name/volume-{:05d}.img"
LISTS = (("ls",), ("history", "--limit", str(COUNT)))


def live(number: int) -> SealInfo:
    return seal(
        id=f"0d88f0e1{number:08x}4269eff8",
        path=PATH.format(number),
        range=ByteRange(number * 4096, 4096),
    )


def recorded(info: SealInfo) -> SealRecord:
    return SealRecord(
        id=info.id, boot="", file=info.file, path=info.path, filesystem="xfs", range=info.range,
        effective=info.effective, kind=info.kind.value, iomode=info.iomode.value,
        conflict=info.conflict.value, fence="none", holder_pid=4711, holder_start=99, holder_uid=0,
        holder_comm="server", asker_pid=None, asker_uid=None, tag="", enforcers=["fanotify"],
        granted_at=info.granted_at, ended_at=info.granted_at + 60, state="returned", reason="",
        mapped=True,
    )  # fmt: skip


SEALS = [live(number) for number in range(COUNT)]


def tell_all(daemon: FakeDaemon, command: str) -> None:
    """One connection that asks for page after page."""
    connection = daemon.accept()
    after = None
    for start in range(0, COUNT, PAGE):
        request, _ = connection.request(List if command == "ls" else History)
        assert request.after == after
        page = SEALS[start : start + PAGE]
        last = start + PAGE >= COUNT
        if command == "ls":
            after = None if last else page[-1].id
            connection.answer(request, SealPage(seals=page, next=after))
        else:
            after = None if last else str(COUNT - start)
            records = [recorded(info) for info in page]
            connection.answer(request, SealHistory(seals=records, next=after))


@pytest.mark.parametrize("command", LISTS)
def test_a_pipe_has_every_row_whole(
    daemon: FakeDaemon, sealctl: Start, tmp_path: Path, command: tuple[str, ...]
) -> None:
    with (tmp_path / "shown").open("w+") as shown:
        running = sealctl(*command, stdout=shown)
        tell_all(daemon, command[0])
        assert running.result()[0] == 0
        shown.seek(0)
        header, *rows = shown.read().splitlines()
    assert header.split()[0] == "ID"
    assert [row.split()[0] for row in rows] == [info.id for info in SEALS]
    assert [row.split()[-1] for row in rows] == [info.path for info in SEALS]


@pytest.mark.parametrize("command", LISTS)
def test_eighty_columns_have_every_row_on_one_line(
    daemon: FakeDaemon, sealctl: Start, command: tuple[str, ...]
) -> None:
    main, side = pty.openpty()
    termios.tcsetwinsize(side, (24, 80))
    written = bytearray()

    def read() -> None:
        try:
            while data := os.read(main, 65536):
                written.extend(data)
        except OSError:  # EIO: the other side is closed
            pass

    reader = threading.Thread(target=read)
    running = sealctl("--color", "never", *command, stdout=side, env_more={"TERM": "xterm"})
    os.close(side)
    reader.start()
    tell_all(daemon, command[0])
    assert running.result()[0] == 0
    reader.join()
    os.close(main)
    _, *rows = written.decode().splitlines()
    assert max(map(len, rows)) <= 80
    ends = [row.split()[0] for row in rows]
    assert all(info.id.endswith(end) for info, end in zip(SEALS, ends, strict=True))
    assert len(set(ends)) == COUNT
    for info, row in zip(SEALS, rows, strict=True):
        assert exact_range(info.range) in row.split()
        assert row.split()[-1].endswith(info.path[-6:])


def newest(client: Client) -> list[str]:
    """The id of the newest seal in the history, which a service has some time after its start."""
    try:
        return [seal.id for seal in client.history(limit=1).seals]
    except Refusal as refusal:
        if refusal.code != "try-later":
            raise
        return []


def test_the_service_tells_page_after_page(tmp_path: Path) -> None:
    """Of the list and of what is recorded: pages are cut to what a message has room for."""
    config = tmp_path / "sealsvc.toml"
    config.write_text(f'[registry]\ndirectory = "{tmp_path / "registry"}"\n')
    with (
        service(tmp_path, "--sim", "--config", str(config)),
        Client(str(tmp_path / "control.sock")) as client,
    ):
        held = []
        for number in range(300):
            path = f"/sim/{'long-name-' * 12}{number % 4}"
            reply = client.grant(path=path, kind="shared", offset=number * 4096, length=4096)
            os.close(reply.fds[0])
            held.append(reply.seal.id)
        assert 20 < len(client.seals(limit=1000).seals) < 300
        wait_for(lambda: newest(client) == held[-1:])
        assert 40 < len(client.history(limit=1000).seals) < 300
        for command in (("ls",), ("history", "--limit", "1000")):
            done = subprocess.run(
                [sys.executable, "-m", "sealsvc.cli.sealctl", *command, "-o", "json"],
                env=os.environ | {"PYTHONPATH": str(ROOT), "SEALSVC_SOCKET": client.path},
                stdout=subprocess.PIPE,
                timeout=60,
                check=True,
            )
            told = [found["id"] for found in json.loads(done.stdout)["seals"]]
            assert told == sorted(held, reverse=command[0] == "history")
