"""The control socket passed by systemd: served, left behind, and refused when it is another."""

from __future__ import annotations

import os
import socket as sockets
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.system import ServiceStatus, Status
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[2]

# As systemd does: the descriptors from 3 on, and their number in the environment of that very pid.
PASS = """
import os, sys
count, fds = int(sys.argv[1]), [int(fd) for fd in sys.argv[2].split(",")]
spare = [os.dup2(fd, 100 + at) for at, fd in enumerate(fds)]
for at, fd in enumerate(spare):
    os.dup2(fd, 3 + at)
    os.close(fd)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "LISTEN_FDNAMES": "x"}
os.execv(sys.executable, [sys.executable, "-m", "sealsvc.cli.service", *sys.argv[3:]])
"""


def listening(path: Path, kind: int = sockets.SOCK_SEQPACKET) -> sockets.socket:
    sock = sockets.socket(sockets.AF_UNIX, kind)
    sock.bind(str(path))
    sock.listen(16)
    return sock


def activated(path: Path, *passed: sockets.socket) -> subprocess.Popen[str]:
    fds = [sock.fileno() for sock in passed]
    command = [sys.executable, "-c", PASS, str(len(fds)), ",".join(map(str, fds))]
    return subprocess.Popen(
        [*command, "serve", "--sim", "--socket", str(path)],
        cwd=ROOT,
        pass_fds=fds,
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(path: Path) -> ServiceStatus:
    with Client(str(path), timeout=PATIENCE) as client:
        status = client.call(Status).result
        assert isinstance(status, ServiceStatus)
        return status


def test_who_connects_before_the_service_is_there_is_served(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with listening(path) as sock:
        before = path.stat().st_ino
        found: list[ServiceStatus] = []
        early = threading.Thread(target=lambda: found.append(answers(path)))
        early.start()
        process = activated(path, sock)
        early.join(PATIENCE)
        assert found[0].simulated
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        # The socket is whose it was, and the next service goes on with it.
        assert path.stat().st_ino == before
        late = threading.Thread(target=lambda: found.append(answers(path)))
        late.start()
        process = activated(path, sock)
        late.join(PATIENCE)
        assert len(found) == 2
        process.terminate()
        process.communicate(timeout=PATIENCE)
        assert process.returncode == 0


def test_what_is_passed_must_be_the_control_socket(tmp_path: Path) -> None:
    path, other = tmp_path / "control.sock", tmp_path / "other.sock"
    with (
        listening(path, sockets.SOCK_STREAM) as stream,
        listening(other) as elsewhere,
        open(os.devnull) as null,
        sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as deaf,
    ):
        for passed, why in [
            ([stream], "ListenSequentialPacket"),
            ([deaf], "ListenSequentialPacket"),
            ([elsewhere], f"service.socket says {path}"),
            ([null], "no socket"),
            ([elsewhere, elsewhere], "2 sockets"),
        ]:
            process = activated(path, *passed)  # type: ignore[arg-type]
            _, said = process.communicate(timeout=PATIENCE)
            assert process.returncode == 1
            assert why in said
            assert "Traceback" not in said


def test_a_socket_for_another_process_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that a service of systemd's starts binds its own."""
    path = tmp_path / "control.sock"
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    command = [sys.executable, "-m", "sealsvc.cli.service", "serve", "--sim", "--socket", str(path)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        while not path.exists():
            assert process.poll() is None
        assert answers(path).simulated
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0
    assert not path.exists()
