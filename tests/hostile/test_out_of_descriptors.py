"""A client that has no number left for a descriptor: it is told so, and nothing stays sealed."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import AsyncClient, Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Grant, List
from tests.support.service import ROOT, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

ROOM = 16  # descriptors


def alone(work: Any) -> Any:
    """What `work` returns in a child whose RLIMIT_NOFILE is its own."""
    ours, theirs = os.pipe()
    if not (pid := os.fork()):
        try:
            os.write(theirs, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as told:
        found = told.read()
    os.waitpid(pid, 0)
    return json.loads(found)


def use_up() -> list[int]:
    """All descriptors that may still be had, which are a few; those of the parent are here, too."""
    first = os.open("/dev/null", os.O_RDONLY)
    limit = first + ROOM
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    taken = [first]
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return taken


def nothing_sealed(running: Running) -> bool:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        return client.call(List).result.seals == []  # type: ignore[union-attr]


def test_the_client(running: Running, file: Path) -> None:
    def work() -> list[Any]:
        client = Client(str(running.socket), timeout=PATIENCE)
        use_up()
        try:
            client.grant(path=str(file), kind="exclusive")
        except Refusal as found:
            left = client.call(List).result.seals  # type: ignore[union-attr]
            is_it = found.details["limit"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            return [found.code, found.message, is_it, len(left)]
        return []

    code, message, is_the_limit, left = alone(work)
    assert (code, is_the_limit, left) == ("out-of-descriptors", True, 0)
    assert "RLIMIT_NOFILE" in message
    assert "was returned" in message


def test_a_client_without_a_socket(running: Running) -> None:
    def work() -> str:
        use_up()
        try:
            Client(str(running.socket))
        except Refusal as found:
            return found.code
        return "connected"

    assert alone(work) == "out-of-descriptors"


def test_the_client_of_an_event_loop(running: Running, file: Path) -> None:
    def work() -> str:
        async def ask() -> str:
            async with AsyncClient(str(running.socket)) as client:
                taken = use_up()
                try:
                    await client.call(Grant, path=str(file), kind="exclusive")
                except Refusal as found:
                    os.close(taken[0])
                    await client.call(List)
                    return found.code
            return "granted"

        return asyncio.run(ask())

    assert alone(work) == "out-of-descriptors"
    until(lambda: nothing_sealed(running))


@pytest.mark.parametrize("limit", [6, 7, 8, 9])
def test_sealctl(running: Running, file: Path, limit: int) -> None:
    command = [sys.executable, "-m", "sealsvc.cli.sealctl", "--socket", running.socket]
    done = subprocess.run(
        ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command, "hold", file, "--", "true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert "internal" not in said
    assert "Traceback" not in said
    if done.returncode:
        assert "open files" in said
    until(lambda: nothing_sealed(running))
