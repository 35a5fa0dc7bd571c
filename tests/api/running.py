"""The real service on a simulated system, and the real API before it, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from sealsvc.client import Client
from tests.api.conftest import TOKEN, write_principals

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


@contextmanager
def service(directory: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    path = directory / "control.sock"
    command = [sys.executable, "-m", "sealsvc.cli.service", "serve", "--socket", str(path), *more]
    with (directory / "service.log").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, text=True)
    try:
        wait_for(lambda: _answers(path), process)
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def _answers(path: Path) -> bool:
    try:
        Client(str(path)).close()
    except Exception:
        return False
    return True


@dataclass
class Front:
    """The API of a service: where both listen."""

    base: str
    control: str
    process: subprocess.Popen[str]

    def http(self, token: str = TOKEN) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.base, headers=headers, timeout=PATIENCE)

    def client(self) -> Client:
        return Client(self.control, timeout=PATIENCE)


@contextmanager
def front(directory: Path, principals: Path, *more: str) -> Iterator[Front]:
    from tests.api.test_api_serve import serving

    control = str(directory / "control.sock")
    arguments = ("--socket", control, "--principals", str(principals), *more)
    with (
        serving(*arguments) as program,
        httpx.Client(base_url=program.base, timeout=PATIENCE) as http,
    ):
        wait_for(lambda: http.get("/readyz").status_code == 200, program.process)
        yield Front(program.base, control, program.process)


@contextmanager
def simulated(directory: Path, *more: str) -> Iterator[Front]:
    """Both, and principals of each role by the tokens admin, operator, sealer and viewer."""
    roles = {
        name: {
            "role": name,
            "scopes": ["/"],
            "holders": ["*"],
            "token": TOKEN if name == "admin" else name,
            "requests_per_second": 100_000,
        }
        for name in ("admin", "operator", "sealer", "viewer")
    }
    roles["guest"] = {"role": "sealer", "scopes": ["/sim/guest"], "token": "guest"}
    roles["guest"]["holders"] = [os.getuid()]
    principals = write_principals(directory / "principals.toml", **roles)
    with ExitStack() as stack:
        stack.enter_context(service(directory, "--sim", *more))
        yield stack.enter_context(front(directory, principals))
