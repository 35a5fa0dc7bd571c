from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from api.serve import main
from tests.api.conftest import PATIENCE, TOKEN, until
from tests.api.fake_daemon import FakeDaemon


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The program itself in a process of its own, and where it listens."""
    command = [sys.executable, "-W", "error", "-m", "api.serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while not (match := re.search(r"listening on (\S+)", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        process.said = said  # type: ignore[attr-defined]
        yield process, match[1]
    finally:
        process.kill()
        process.communicate()


def test_the_whole_program(daemon: FakeDaemon, principals: Path) -> None:
    arguments = ("--socket", str(daemon.path), "--principals", str(principals))
    with serving(*arguments) as (process, base), httpx.Client(base_url=base) as http:
        until(lambda: _ready(http))
        body = {"path": "/srv/a", "holder": {"pid": 1}}
        assert http.post("/v1/seals", json=body).status_code == 401
        http.headers["Authorization"] = f"Bearer {TOKEN}"
        assert http.post("/v1/seals", json=body).status_code == 201
        with http.stream("GET", "/v1/events") as stream:
            next(stream.iter_lines())
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM), "an open stream must not hold it"
        assert "Traceback" not in process.stderr.read()  # type: ignore[union-attr]


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_it_warns_a_caller_that_is_root(daemon: FakeDaemon) -> None:
    with serving("--socket", str(daemon.path)) as (process, _):
        said: str = process.said  # type: ignore[attr-defined]
    assert ("running as root" in said) is (os.geteuid() == 0)
    assert "no --principals" in said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_it_refuses_to_listen_to_everybody(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--host", host]) == 2
    told = capsys.readouterr().err
    assert "plain" in told
    assert "--allow-remote" in told


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--principals", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
