"""sealctl hold against the protocol: who gets the descriptor, the signals and the exit status."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from pathlib import Path

import pytest
from fake_daemon import ONE, FakeDaemon
from sealctl_process import Start

from sealsvc.core.model import Fence, IoMode, Kind, Preparation
from sealsvc.protocol.seals import Grant, HolderSpec

PYTHON = (sys.executable, "-c")

# Tells what it was given.
REPORT = """
import json, os, sys
fd = int(os.environ["SEALSVC_FD"])
listed = os.listdir("/proc/self/fd")
# Without the one that listdir itself had.
open_fds = [int(n) for n in listed if os.path.exists("/proc/self/fd/" + n)]
print(json.dumps({"pid": os.getpid(), "fd": fd, "seal": os.environ["SEALSVC_SEAL"],
    "data": os.pread(fd, 100, 0).decode(), "open": [n for n in open_fds if n > 2],
    "same": [n for n in open_fds if n > 2 and n != fd and os.path.sameopenfile(n, fd)]}),
    flush=True)
"""


def test_command_gets_descriptor_and_id(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    running = sealctl("hold", file, "--", *PYTHON, REPORT)
    connection, request, pidfd = daemon.grant(file)
    assert request.path == str(file)
    assert request.holder == HolderSpec(pidfd=True)
    assert (request.offset, request.length, request.kind) == (0, None, Kind.EXCLUSIVE)
    told = json.loads(running.line())
    assert (told["seal"], told["data"]) == (ONE.id, "sealed data")
    # One copy of the descriptor, and nothing of sealctl's own.
    assert told["same"] == []
    assert told["open"] == [told["fd"]]
    # The return comes after the holder's end, and the pidfd was the holder's.
    connection.take_back()
    assert select.select([pidfd], [], [], 0)[0]
    os.close(pidfd)
    assert running.result() == (0, "", "")


def test_terms_reach_the_service(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    terms = "--range 1M:64K --kind shared --iomode read --fence kill --grace 1m30s --ttl 2h"
    words = "--prepare allocate,convert --prepare align,allocate --require map_sync --tag me"
    running = sealctl("hold", *terms.split(), file, *words.split(), "--", "true")
    connection, request, pidfd = daemon.grant(file)
    os.close(pidfd)
    connection.take_back()
    assert running.result()[0] == 0
    assert (request.offset, request.length) == (1 << 20, 64 << 10)
    assert (request.kind, request.iomode, request.fence) == (Kind.SHARED, IoMode.READ, Fence.KILL)
    assert (request.grace, request.ttl, request.tag) == (90.0, 7200.0, "me")
    assert request.require.map_sync
    assert not request.require.pmd
    assert request.prepare == [Preparation.ALLOCATE, Preparation.CONVERT, Preparation.ALIGN]


@pytest.mark.parametrize("number", [0, 3, 4, 5, 6, 7, 42])
def test_chosen_descriptor_number(
    daemon: FakeDaemon, sealctl: Start, file: Path, number: int
) -> None:
    """Small numbers are those that sealctl's own descriptors have at that moment."""
    running = sealctl("hold", file, "--fd", number, "--", *PYTHON, REPORT)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    told = json.loads(running.line())
    assert (told["fd"], told["data"], told["same"]) == (number, "sealed data", [])
    connection.take_back()
    assert running.result()[0] == 0


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 128 + 9)]
)
def test_status_is_the_commands(
    daemon: FakeDaemon, sealctl: Start, file: Path, script: str, status: int
) -> None:
    running = sealctl("hold", file, "--", "sh", "-c", script)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    connection.take_back()
    assert running.result()[0] == status


def test_refused_grant_runs_nothing(
    daemon: FakeDaemon, sealctl: Start, file: Path, tmp_path: Path
) -> None:
    running = sealctl("hold", file, "--", "touch", tmp_path / "ran")
    connection = daemon.accept()
    request, [pidfd] = connection.request(Grant)
    connection.fail(request, "try-later", "being recalled", retry_after=1.5)
    status, out, err = running.result()
    assert (status, out) == (6, "")
    assert "sealctl: try-later: being recalled\n" in err
    assert "Retry in 1.5s." in err
    assert select.select([pidfd], [], [], 0)[0], "the stopped child is still there"
    os.close(pidfd)
    assert not (tmp_path / "ran").exists()


def test_answer_without_descriptor_runs_nothing(
    daemon: FakeDaemon, sealctl: Start, file: Path, tmp_path: Path
) -> None:
    running = sealctl("hold", file, "--", "touch", tmp_path / "ran")
    connection = daemon.accept()
    request, [pidfd] = connection.request(Grant)
    os.close(pidfd)
    connection.answer(request, ONE)
    assert running.result()[0] == 1
    assert not (tmp_path / "ran").exists()


def test_unknown_command_is_not_sealed_for(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    status, _, err = sealctl("hold", file, "--", "no-such-command").result()
    assert status == 127
    assert err == "sealctl: no-such-command: command not found; nothing was sealed\n"


@pytest.mark.parametrize(
    ("content", "status"), [("#!/no/such/interpreter\n", 127), ("\0junk", 126)]
)
def test_command_that_cannot_be_executed(
    daemon: FakeDaemon, sealctl: Start, file: Path, tmp_path: Path, content: str, status: int
) -> None:
    script = tmp_path / "script"
    script.write_text(content)
    script.chmod(0o755)
    running = sealctl("hold", file, "--", script)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    connection.take_back()
    got, _, err = running.result()
    assert got == status
    assert "could not be executed: " in err


def test_interrupt_during_the_grant(
    daemon: FakeDaemon, sealctl: Start, file: Path, tmp_path: Path
) -> None:
    running = sealctl("hold", file, "--", "touch", tmp_path / "ran")
    connection = daemon.accept()
    _, [pidfd] = connection.request(Grant)
    running.signal(signal.SIGINT)
    assert connection.ended()
    assert running.result()[0] == 130
    assert select.select([pidfd], [], [], 0)[0]
    os.close(pidfd)
    assert not (tmp_path / "ran").exists()
