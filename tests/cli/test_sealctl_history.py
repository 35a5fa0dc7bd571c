"""sealctl history of what a power cut ended, and of a life by a short id."""

from __future__ import annotations

from fake_daemon import ONE, FakeDaemon
from sealctl_process import Start

from sealsvc.protocol.history import (
    ConflictHistory,
    History,
    PastConflicts,
    SealHistory,
    SealRecord,
    Steps,
    Transition,
    Transitions,
)
from sealsvc.protocol.seals import List, SealPage

CUT = SealRecord(
    id=ONE.id,
    boot="11111111-2222-3333-4444-555555555555",
    file=ONE.file,
    path=ONE.path,
    filesystem="xfs",
    range=ONE.range,
    effective=ONE.effective,
    kind="exclusive",
    iomode="rw",
    conflict="wait",
    fence="none",
    holder_pid=4711,
    holder_start=99,
    holder_uid=0,
    holder_comm="server",
    asker_pid=None,
    asker_uid=None,
    tag="",
    enforcers=["fanotify"],
    granted_at=1_700_000_000.0,
    ended_at=1_700_000_028.6,
    state="granted",
    reason="not live after a restart of the machine",
    mapped=True,
)
STEP = Transition(seqid=1, time=CUT.granted_at, before="requested", after="granted", reason="")


def test_what_a_power_cut_ended_is_not_granted(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("history")
    daemon.serve(History, SealHistory(seals=[CUT]))
    status, out, _ = running.result()
    assert status == 0
    _, row = out.splitlines()
    assert "cut off" in row
    assert "< 28.6s" in row
    assert "granted" not in row


def test_a_life_by_the_end_of_its_id(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("history", ONE.id[-6:])
    connection = daemon.accept()
    connection.answer(connection.request(List)[0], SealPage(seals=[]))
    asked, _ = connection.request(History)
    assert asked.wanted.part == ONE.id[-6:]
    connection.answer(asked, SealHistory(seals=[CUT]))
    asked, _ = connection.request(Steps)
    assert asked.seal == ONE.id
    connection.answer(asked, Transitions(seal=ONE.id, transitions=[STEP]))
    connection.answer(connection.request(PastConflicts)[0], ConflictHistory(conflicts=[]))
    connection.answer(connection.request(History)[0], SealHistory(seals=[CUT]))
    status, out, _ = running.result()
    assert status == 0
    assert "cut off while granted" in out
    assert "not live after a restart of the machine" in out
