from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import FakeDaemon
from sealctl_process import Sealctl

ROOT = Path(__file__).parents[2]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    fake = FakeDaemon(tmp_path / "control.sock")
    yield fake
    fake.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "db"
    made.write_text("sealed data")
    return made


@pytest.fixture
def sealctl(tmp_path: Path) -> Iterator[Callable[..., Sealctl]]:
    """Starts sealctl against the fake daemon's socket; none may be left running."""
    started: list[Sealctl] = []
    before = {name: value for name, value in os.environ.items() if not name.startswith("SEALSVC")}
    env = before | {
        "PYTHONPATH": str(ROOT),
        "SEALSVC_SOCKET": str(tmp_path / "control.sock"),
        "TZ": "UTC",
    }

    def start(*arguments: object, env_more: dict[str, str] | None = None, **how: Any) -> Sealctl:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        made = Sealctl(tuple(map(str, arguments)), env | (env_more or {}), **(pipes | how))
        started.append(made)
        return made

    yield start
    running = [made for made in started if made.process.poll() is None]
    for made in running:
        made.process.kill()
        made.process.wait()
    for made in started:
        for pipe in (made.process.stdin, made.process.stdout, made.process.stderr):
            if pipe:
                pipe.close()
    assert not running, "sealctl was left running"
