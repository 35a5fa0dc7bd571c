"""sealctl why: from a process or a file that hangs to the seal, its holder and the remedy."""

from __future__ import annotations

import json
import os

import pytest
from fake_daemon import ONE, FakeDaemon, seal
from sealctl_process import Start

from sealsvc.core.model import Fence, Operation, State
from sealsvc.protocol.admin import ConflictPage, Conflicts, WaitingConflict
from sealsvc.protocol.seals import List, SealInfo, SealPage, Show

RECALLED = seal(
    state=State.RECALLED, deadline_in=20.0, reason="conflict", fence=Fence.KILL, tag="nic-0"
)


def waiting(pid: int = 77) -> ConflictPage:
    operation = Operation(name="truncate", offset=0, length=0, pid=pid, tid=pid, comm="dd\x1b[2J")
    wait = WaitingConflict(
        enforcer="fanotify", operation=operation, path=ONE.path, seals=[ONE.id], waits=12.0
    )
    return ConflictPage(conflicts=[wait], total=1)


def test_a_process_that_waits(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("why", "77")
    connection = daemon.accept()
    connection.answer(connection.request(Conflicts)[0], waiting())
    asked, _ = connection.request(Show)
    assert asked.seal == ONE.id
    connection.answer(asked, RECALLED)
    status, out, _ = running.result()
    assert status == 0
    for told in (
        f"truncate of {ONE.path} by process 77 (dd\\x1b[2J) has waited 12s for",
        f"seal {ONE.id} (recalled)",
        "held by process 4711 (server)",
        "tag nic-0",
        "deadline: in 20s; then the holder is killed",
        "end its holder: kill 4711",
    ):
        assert told in out, (told, out)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (seal(deadline_in=None), f"to end it: sealctl recall {ONE.id} --wait"),
        (seal(state=State.RECALLED, deadline_in=0.0), "to end it: end its holder: kill 4711"),
        (seal(state=State.LOST, deadline_in=None), "to end it: end its holder: kill 4711"),
        (seal(state=State.FENCE_FAILED), "to end it: end process 4711 and whoever maps the file"),
    ],
)
def test_each_state_has_its_remedy(
    daemon: FakeDaemon, sealctl: Start, found: SealInfo, told: str
) -> None:
    """Where no deadline is running, none is to be waited for."""
    running = sealctl("why", ONE.path)
    connection = daemon.accept()
    connection.answer(connection.request(List)[0], SealPage(seals=[found]))
    connection.answer(connection.request(Conflicts)[0], ConflictPage(conflicts=[], total=0))
    status, out, _ = running.result()
    assert status == 0
    assert told in out
    assert "wait for the deadline" not in out


def test_a_file_that_nothing_waits_for(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("why", ONE.path, "-o", "json")
    connection = daemon.accept()
    asked, _ = connection.request(List)
    assert asked.path == ONE.path
    connection.answer(asked, SealPage(seals=[ONE]))
    connection.answer(connection.request(Conflicts)[0], ConflictPage(conflicts=[], total=0))
    status, out, _ = running.result()
    found = json.loads(out)
    assert (status, found["waits"], found["held"][0]["id"]) == (0, [], ONE.id)


def test_a_file_whose_seal_ended_meanwhile(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("why", ONE.path)
    connection = daemon.accept()
    connection.answer(connection.request(List)[0], SealPage(seals=[]))
    connection.answer(connection.request(Conflicts)[0], waiting())
    connection.fail(connection.request(Show)[0], "no-such-seal")
    status, out, _ = running.result()
    assert status == 0
    assert "has waited" in out


def test_a_process_that_waits_for_something_else(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("why", str(os.getpid()))
    connection = daemon.accept()
    connection.answer(connection.request(Conflicts)[0], waiting())
    status, out, _ = running.result()
    assert status == 0
    assert f"process {os.getpid()} waits for no seal" in out


def test_a_process_that_is_not_there(daemon: FakeDaemon, sealctl: Start) -> None:
    """Not exit status 0 and half an answer."""
    running = sealctl("why", str(2**22 + 1))  # above PID_MAX_LIMIT
    daemon.serve(Conflicts, ConflictPage(conflicts=[], total=0))
    status, _, err = running.result()
    assert status == 4
    assert f"there is no process {2**22 + 1}" in err
