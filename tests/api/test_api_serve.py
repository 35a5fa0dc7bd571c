from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from api.serve import main
from tests.api.conftest import PATIENCE, TOKEN, until
from tests.api.fake_daemon import FakeDaemon


@dataclass
class Program:
    """sealsvc-api as a process. Its log is a file: a pipe that nobody reads would stop it."""

    process: subprocess.Popen[str]
    log: Path
    base: str = ""

    @property
    def said(self) -> str:
        return self.log.read_text()


@contextmanager
def serving(*arguments: str) -> Iterator[Program]:
    command = [sys.executable, "-W", "error", "-m", "api.serve", "--port", "0", *arguments]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file, text=True)
        program = Program(process, log)
        try:
            until(lambda: "listening on" in program.said or process.poll() is not None)
            match = re.search(r"listening on (\S+)", program.said)
            assert match, program.said
            program.base = match[1]
            yield program
        finally:
            process.kill()
            process.wait()


def test_the_whole_program(daemon: FakeDaemon, principals: Path) -> None:
    arguments = ("--socket", str(daemon.path), "--principals", str(principals))
    with serving(*arguments) as program, httpx.Client(base_url=program.base) as http:
        process = program.process
        until(lambda: _ready(http))
        body = {"path": "/srv/a", "holder": {"pid": 1}}
        assert http.post("/v1/seals", json=body).status_code == 401
        http.headers["Authorization"] = f"Bearer {TOKEN}"
        assert http.post("/v1/seals", json=body).status_code == 201
        with http.stream("GET", "/v1/events") as stream:
            next(stream.iter_lines())
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM), "an open stream must not hold it"
        assert "Traceback" not in program.said


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_it_warns_a_caller_that_is_root(daemon: FakeDaemon) -> None:
    with serving("--socket", str(daemon.path)) as program:
        assert ("running as root" in program.said) is (os.geteuid() == 0)
        assert "no --principals" in program.said


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
