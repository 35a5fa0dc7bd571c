"""sealctl top, and what is shown to those who wait, on a real terminal and off it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sealsvc.client import Client
from sealsvc.protocol.system import Simulate
from tests.api.running import ROOT, service
from tests.support.waiting import PATIENCE


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("top")
    with service(directory, "--sim"):
        path = str(directory / "control.sock")
        with Client(path) as client:
            client.call(Simulate, action="create", path="/sim/top", size=1 << 20)
            os.close(client.grant(path="/sim/top", grace=300.0).fds[0])
            yield path


def command(control: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "sealsvc.cli.sealctl", "--socket", control, *arguments]


def on_a_terminal(arguments: list[str], cwd: Path = ROOT) -> str:
    """What a terminal of 80 by 24 is sent."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(
        arguments, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the last of the other side has closed it
                break
            if not data:
                break
            said += data
        os.close(ours)
        assert process.wait(PATIENCE) == 0, said.decode(errors="replace")
    return said.decode(errors="replace")


def test_into_a_pipe_it_is_one_picture(control: str) -> None:
    done = subprocess.run(
        command(control, "top"), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "1 granted" in done.stdout
    assert re.search(r"^grant +1 ", done.stdout, re.M)
    assert str(os.getpid()) in done.stdout
    assert "\x1b" not in done.stdout


def test_as_json(control: str) -> None:
    arguments = command(control, "top", "-o", "json", "--count", "2", "--interval", "10ms")
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    pictures = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert [p["status"]["seals"]["granted"] for p in pictures] == [1, 1]


def test_on_a_terminal_it_is_drawn_anew(control: str) -> None:
    said = on_a_terminal(command(control, "top", "--count", "3", "--interval", "50ms"))
    assert said.count("sealsvc") >= 3
    assert "\x1b[?1049h" in said, "on a screen of its own"
    assert "\x1b[?1049l" in said, "which is left at the end"


def test_whoever_waits_is_shown_so(control: str) -> None:
    assert "comparing every sealed map" in on_a_terminal(command(control, "audit"))
    done = subprocess.run(
        command(control, "audit"), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stderr == ""


def test_a_service_that_is_away_is_told_and_waited_for(tmp_path: Path) -> None:
    away = str(tmp_path / "none.sock")
    said = on_a_terminal(command(away, "top", "--count", "1", "--interval", "10ms"))
    assert "Seals stay in force" in said
