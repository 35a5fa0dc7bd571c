"""The service that is measured: the one that runs, or a private one for the scratch directory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sealsvc.client import Client, socket_path
from sealsvc.core.errors import Refusal
from sealsvc.protocol.system import ServiceStatus, Status
from sealsvc.runtime.config import ServiceSection
from sealsvc.service.release import release

_START_WITHIN = 300.0  # seconds: bpf's programs alone take minutes in a busy virtual machine
_STOP_WITHIN = 10.0


def status(socket: str) -> ServiceStatus:
    with Client(socket, timeout=10.0) as client:
        result = client.call(Status).result
    if not isinstance(result, ServiceStatus):
        raise Refusal("internal", "the service answered Status with something else")
    return result


@contextmanager
def measured(socket: str | None, enforcers: Sequence[str] | None, root: str) -> Iterator[str]:
    """The control socket of the service to measure. A running service decides its enforcers
    itself: to choose them, or where none answers, root gets a private service for `root` alone,
    which accepts every risk, so that gaps are measured and not hidden, and keeps no history."""
    path = socket or socket_path()
    if enforcers is None:
        try:
            status(path)
        except Refusal as refusal:
            if refusal.code != "service-unavailable" or os.geteuid():
                raise
        else:
            yield path
            return
    with _private(enforcers, root) as private:
        yield private


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def configuration(socket: str, enforcers: Sequence[str] | None, root: str) -> str:
    lines = [
        "[service]",
        f"socket = {_quoted(socket)}",
        "[policy]",
        f"roots = [{_quoted(root)}]",
        'accept_risks = ["all"]',
        "[registry]",
        "enabled = false",
    ]
    if enforcers is not None:
        lines += ["[enforcers]", f"use = [{', '.join(map(_quoted, enforcers))}]"]
    return "\n".join(lines) + "\n"


@contextmanager
def _private(enforcers: Sequence[str] | None, root: str) -> Iterator[str]:
    if os.geteuid():
        raise Refusal("denied", "only root can start a private service to measure enforcers")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sealsvc-doctor-")))
        socket = str(directory / "control.sock")
        config = directory / "sealsvc.toml"
        config.write_text(configuration(socket, enforcers, root))
        log = stack.enter_context((directory / "log").open("w+"))
        # SEALSVC_SOCKET would override the configuration, and NOTIFY_SOCKET is our own caller's.
        drop = {"SEALSVC_SOCKET", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "WATCHDOG_USEC"}
        process = subprocess.Popen(
            [sys.executable, "-m", "sealsvc.cli.service", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={name: value for name, value in os.environ.items() if name not in drop},
        )
        # A seal that could not be returned must not outlive the measurement.
        # Not by way of load(): SEALSVC_SOCKET would name the service that is really used.
        stack.callback(release, ServiceSection(socket=socket))
        stack.callback(_stop, process)
        _await(process, socket, directory / "log")
        yield socket


def _await(process: subprocess.Popen[bytes], socket: str, log: Path) -> None:
    deadline = time.monotonic() + _START_WITHIN
    pause = 0.02
    while True:
        try:
            status(socket)
            return
        except Refusal as refusal:
            gone = process.poll() is not None
            if refusal.code != "service-unavailable":
                raise
            if gone or time.monotonic() > deadline:
                said = log.read_text()[-2000:].strip()
                raise Refusal(
                    "service-unavailable",
                    f"a private service for the measurement did not start: {said}",
                    {"exit": process.returncode},
                ) from None
        time.sleep(pause)  # longer and longer: where time is scarce, asking must not take it all
        pause = min(1.5 * pause, 0.5)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
