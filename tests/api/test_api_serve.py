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
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from sealsvc_api.serve import main
from tests.api.conftest import PATIENCE, TOKEN
from tests.api.fake_daemon import FakeDaemon
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def _our_log_stays_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """main() in this process would have the log go to the stderr of one test for ever."""
    monkeypatch.setattr("sealsvc_api.serve.configure", lambda *_: None)


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
    command = [sys.executable, "-W", "error", "-m", "sealsvc_api.serve", "--port", "0", *arguments]
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
    with (
        serving(*arguments) as program,
        httpx.Client(base_url=program.base, timeout=PATIENCE) as http,
    ):
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


def test_as_many_follow_the_events_as_the_operator_says(
    daemon: FakeDaemon, principals: Path
) -> None:
    """By SSE and by WebSocket together."""
    arguments = ("--socket", str(daemon.path), "--principals", str(principals))
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with (
        serving(*arguments, "--max-listeners", "2") as program,
        httpx.Client(base_url=program.base, headers=bearer, timeout=PATIENCE) as http,
    ):
        until(lambda: _ready(http))
        socket = program.base.replace("http", "ws") + "/v1/events/ws"
        with http.stream("GET", "/v1/events") as stream:
            until(lambda: stream.status_code == 200)
            with connect(socket, additional_headers=bearer):
                refused = http.get("/v1/events")
                assert (refused.status_code, refused.json()["code"]) == (429, "limit-reached")
                assert refused.json()["details"] == {"limit": 2}
                assert "--max-listeners" in refused.json()["detail"]
                with pytest.raises(InvalidStatus, match="403"):
                    connect(socket, additional_headers=bearer).close()
            until(lambda: http.head("/v1/events").status_code == 200)


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


@pytest.mark.parametrize("option", ["--max-connections", "--max-listeners"])
@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5", ""])
def test_a_limit_is_a_number(option: str, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"{option}={number}"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert f"argument {option}: {number!r} is not a whole number above 0" in told


def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--principals", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
