"""The sockets that systemd passes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from sealsvc.protocol.system import Status
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[2]


def test_a_socket_that_systemd_passed_is_served_and_left(tmp_path: Path) -> None:
    from sealsvc.client import Client

    path = tmp_path / "control.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(tmp_path / "notify"))
    notified.settimeout(PATIENCE)
    # Connected before there is a service: it waits in the queue.
    with listener, notified, Client(str(path), timeout=PATIENCE) as early:
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] ="
            " str(os.getpid()); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
        )
        serve = ("-m", "sealsvc.cli.service", "serve", "--sim", "--socket", str(path))
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(listener.fileno()), *serve],
            cwd=ROOT,
            pass_fds=[listener.fileno()],
            env={
                **os.environ,
                "LISTEN_FDS": "1",
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "200000",
            },
        )
        try:
            assert early.call(Status).result
            told = {notified.recv(100) for _ in range(3)}
            assert told == {b"READY=1", b"WATCHDOG=1"}
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0
        assert path.exists(), "it is systemd's"
