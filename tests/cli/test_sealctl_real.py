"""sealctl on a terminal of 80 columns, before the real service on a simulated system."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import Grant, Return, SealInfo
from sealsvc.protocol.system import Simulate, Status
from tests.api.running import ROOT, service, wait_for
from tests.support.waiting import PATIENCE

PATH = "/sim/volumes/production/database/of-a-very-long-name-{:04}.img"


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("real")
    config = directory / "sealsvc.toml"
    config.write_text(f'[registry]\ndirectory = "{directory}/registry"\n')
    with service(directory, "--sim", "--config", str(config)):
        yield str(directory / "control.sock")


@pytest.fixture
def client(socket: str) -> Iterator[Client]:
    with Client(socket, timeout=PATIENCE) as made:
        yield made


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sealsvc.cli.sealctl", *arguments]


def environment(socket: str) -> dict[str, str]:
    return {**os.environ, "SEALSVC_SOCKET": socket, "PYTHONPATH": str(ROOT), "TERM": "dumb"}


def on_terminal(socket: str, *arguments: str, columns: int = 80) -> tuple[int, list[str]]:
    """The exit status, and the lines that a person sees."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command("--color", "never", *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(socket),
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # EIO: the last of the other end is closed
        pass
    os.close(ours)
    return process.wait(PATIENCE), said.decode().replace("\r\n", "\n").splitlines()


def piped(socket: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=60, env=environment(socket)
    )


def sealed(client: Client, number: int, **terms: object) -> SealInfo:
    path = PATH.format(number)
    client.call(Simulate, action="create", path=path, size=1 << 16)
    reply = client.call(Grant, path=path, **({"kind": "shared", "tag": "nic-0"} | terms))
    for fd in reply.fds:
        os.close(fd)
    return reply.seal


@pytest.fixture
def seals(client: Client) -> Iterator[list[SealInfo]]:
    made = [sealed(client, number) for number in range(30)]
    yield made
    for seal in made:
        client.call(Return, seal=seal.id)


def test_nothing_that_is_copied_is_cut(socket: str, seals: list[SealInfo]) -> None:
    status, lines = on_terminal(socket, "ls")
    assert status == 0
    header, *rows = lines
    assert len(rows) == len(seals)
    assert max(map(len, lines)) <= 80
    columns = header.split()
    for seal, row in zip(seals, rows, strict=True):
        cells = dict(zip(columns, row.split(), strict=True))
        assert seal.id.endswith(cells["ID"])
        assert cells["RANGE"] == "0:64K"
        assert cells["PATH"].endswith(seal.path[-8:])
    # What the list shows, the commands take.
    status, lines = on_terminal(socket, "show", rows[7].split()[0])
    assert status == 0
    assert seals[7].id in lines[0]
    told = piped(socket, "ls").stdout.splitlines()[1:]
    assert [row.split()[0] for row in told] == [seal.id for seal in seals]
    assert all(seal.path in row for seal, row in zip(seals, told, strict=True))
    # So does -o wide on a terminal: whole ids and paths, and every column.
    status, (header, *wide) = on_terminal(socket, "ls", "-o", "wide")
    assert status == 0
    assert {"KIND", "CONFLICT", "WAITING"} <= set(header.split())
    assert [row.split()[0] for row in wide] == [seal.id for seal in seals]
    assert all(row.endswith(seal.path) for seal, row in zip(seals, wide, strict=True))


def test_a_seal_that_is_over_has_a_short_id_too(socket: str, client: Client) -> None:
    seal = sealed(client, 90)
    client.call(Return, seal=seal.id)

    def recorded() -> list[str]:
        return on_terminal(socket, "history", "--path", seal.path)[1][1:]

    wait_for(lambda: any("returned" in row for row in recorded()))
    (row,) = recorded()
    short = row.split()[0]
    assert len(short) < 24
    status, lines = on_terminal(socket, "history", short)
    assert status == 0
    told = " ".join(" ".join(lines[1:]).split())
    assert f"granted returned given back by process {os.getpid()}" in told
    assert on_terminal(socket, "show", "ffffff")[0] == 4


def test_events_read_as_sentences(socket: str, client: Client) -> None:
    first = client.call(Simulate, action="clock", seconds=0) and client.call
    seal = sealed(client, 91)
    first(Return, seal=seal.id)
    sentence = rf"granted +{seal.id} {seal.path} 0:64K shared to process \d+ \("

    def told() -> bool:
        said = piped(socket, "watch", "--since", "0", "--timeout", "1").stdout
        assert "None" not in said
        assert "{" not in said
        return bool(re.search(sentence, said))

    wait_for(told)  # on a slow machine not all is heard in a second


def test_the_trail_reads_as_sentences(socket: str, client: Client) -> None:
    seal = sealed(client, 95)
    client.call(Return, seal=seal.id)
    me = f"process {os.getpid()}"

    def told() -> bool:
        status, lines = on_terminal(socket, "trail", "--seal", seal.id)
        text = " ".join(lines)
        assert "{" not in text
        return status == 0 and all(
            sentence in text
            for sentence in (
                f"{seal.path} 0:64K shared to {me}",
                f"granted -> returned (given back by {me})",
                f"return: done, asked for by {me}",
            )
        )

    wait_for(told)
    started = piped(socket, "trail", "--kind", "started").stdout
    assert re.search(r"in boot [0-9a-f-]{36}, with \S+", started)


def test_who_waits_on_whom_is_told_everywhere(socket: str, client: Client) -> None:
    seal = sealed(client, 94, grace=300.0)

    def intrude() -> None:
        with Client(socket, timeout=120) as other:
            other.call(Simulate, action="conflict", path=seal.path, length=4096, pid=os.getppid())

    thread = threading.Thread(target=intrude)
    thread.start()
    try:
        wait_for(lambda: client.call(Status).result.conflicts_waiting == 1)
        by = str(os.getppid())
        for what in (by, seal.path):
            status, lines = on_terminal(socket, "why", what)
            assert any(f" of {seal.path} by" in line for line in lines), "in one piece"
            told = " ".join(" ".join(lines).split())
            assert status == 0
            for part in (f"process {by}", seal.id, f"process {os.getpid()}", "tag nic-0"):
                assert part in told
            assert "then conflicting operations get EBUSY" in told
        header, row = on_terminal(socket, "ls", "--path", seal.path)[1]
        cells = dict(zip(header.split(), row.split(), strict=True))
        assert (cells["STATE"], cells["WAITING"]) == ("recalled", "1")
        assert cells["DEADLINE"].endswith("s")
        assert re.search(rf"waiting +\S+ by process {by}", piped(socket, "show", seal.id).stdout)
        log = Path(socket).with_name("service.log").read_text()
        assert f"waits for seal {seal.id} of process {os.getpid()}" in log
        assert f"sealctl why {by}" in log
    finally:
        client.call(Return, seal=seal.id)
        thread.join(PATIENCE)


def test_a_silent_holder_is_not_an_absent_service(socket: str, client: Client) -> None:
    seal = sealed(client, 92, grace=60.0)
    done = piped(socket, "recall", seal.id[-8:], "--wait", "--timeout", "5")
    assert done.returncode == 6
    assert f"{seal.id} of process {os.getpid()}" in done.stderr
    assert "Start it" not in done.stderr
    client.call(Return, seal=seal.id)


def test_what_a_command_held_ends_as_returned(socket: str, client: Client) -> None:
    path = PATH.format(93)
    client.call(Simulate, action="create", path=path, size=1 << 16)
    done = piped(
        socket,
        "hold",
        path,
        "--",
        *("sh", "-c", "exec 3<&-; " + " ".join(command("ls", "--path", path, "-o", "json"))),
    )
    assert done.returncode == 0, done.stderr
    assert '"comm": "sh"' in done.stdout, "the name that it has as the holder"
    (seal,) = re.findall(r'"id": "([0-9a-f]{24})"', done.stdout)
    wait_for(lambda: "returned" in piped(socket, "show", seal).stdout)
    shown = piped(socket, "show", seal).stdout
    assert re.search(r"reason +\S+", shown)
    assert "revoked" not in shown


def test_an_absent_service(tmp_path: Path) -> None:
    done = piped(str(tmp_path / "control.sock"), "status")
    assert done.returncode == 7
    assert "SEALSVC_SOCKET" in done.stderr
