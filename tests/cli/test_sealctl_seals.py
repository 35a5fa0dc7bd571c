"""ls, show and recall: what they ask, and what they make of the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_daemon import ONE, TWO, FakeDaemon, as_json, seal
from sealctl_process import Start

from sealsvc.core.model import ByteRange, Kind, Operation, State
from sealsvc.protocol.admin import ConflictPage, Conflicts, WaitingConflict
from sealsvc.protocol.history import History, SealHistory
from sealsvc.protocol.seals import (
    Extent,
    ExtentPage,
    Extents,
    List,
    RecallOutcome,
    RecallReport,
    RecallSeals,
    SealPage,
    Show,
)

WAITING = WaitingConflict(
    enforcer="fanotify",
    operation=Operation(name="truncate", offset=0, length=0, pid=7, comm="dd"),
    path=ONE.path,
    seals=[ONE.id, TWO.id],
    waits=1.0,
)


def test_ls_pages_and_filters(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("ls", "--path", "/pmem/./db", "--state", "fence-failed", "--pid", 4711)
    connection = daemon.accept()
    first, _ = connection.request(List)
    assert (first.path, first.state, first.pid) == ("/pmem/db", State.FENCE_FAILED, 4711)
    connection.answer(first, SealPage(seals=[ONE], next=ONE.id))
    second, _ = connection.request(List)
    assert (second.after, second.pid) == (ONE.id, 4711)
    connection.answer(second, SealPage(seals=[TWO]))
    waiting = ConflictPage(conflicts=[WAITING], total=1)
    connection.answer(connection.request(Conflicts)[0], waiting)
    status, out, err = running.result()
    assert (status, err) == (0, "")
    header, one, two = out.splitlines()
    columns = ["ID", "STATE", "WAITING", "DEADLINE", "KIND", "CONFLICT", "RANGE", "HOLDER", "AGE"]
    assert header.split() == [*columns, "PATH"]
    cells = one.split()
    assert cells[:8] == [ONE.id, "active", "1", "-", "exclusive", "wait", "1M:64K", "4711/server"]
    assert cells[-1] == "/pmem/db"
    assert two.split()[1:3] == ["recalled", "1"]
    # Neither markup nor escape sequences of a path take effect.
    assert two.split()[-1] == r"/pmem/[red]\x1b[2J"


def test_ls_json_is_the_message(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("ls", "-o", "json", "--kind", "shared", "--tag", "me", "--filesystem", "/a/.")
    asked = daemon.serve(List, SealPage(seals=[ONE, TWO]))
    assert (asked.kind, asked.tag, asked.filesystem) == (Kind.SHARED, "me", "/a")
    status, out, _ = running.result()
    assert status == 0
    assert json.loads(out) == as_json(SealPage(seals=[ONE, TWO]))


def test_colour(daemon: FakeDaemon, sealctl: Start) -> None:
    outputs = {}
    for color in ("always", "never", "auto"):
        running = sealctl("--color", color, "ls", env_more={"TERM": "xterm"})
        daemon.serve(List, SealPage(seals=[ONE]))
        outputs[color] = running.result()[1]
    assert "\x1b[32mactive" in outputs["always"]
    assert "\x1b" not in outputs["never"] + outputs["auto"]


@pytest.mark.parametrize("part", ["5f", "00001"])
def test_show_takes_an_end_of_an_id(daemon: FakeDaemon, sealctl: Start, part: str) -> None:
    running = sealctl("show", part)
    connection = daemon.accept()
    request, _ = connection.request(List)
    assert request.search == part
    connection.answer(request, SealPage(seals=[ONE, TWO]))
    request, _ = connection.request(Show)
    assert request.seal == ONE.id
    connection.answer(request, seal(state=State.RECALLED, deadline_in=12.5, reason="backup"))
    waiting = ConflictPage(conflicts=[WAITING], total=1)
    connection.answer(connection.request(Conflicts)[0], waiting)
    status, out, _ = running.result()
    rows = dict(row.split(maxsplit=1) for row in out.splitlines())
    assert status == 0
    assert rows["id"].strip() == ONE.id
    assert rows["range"].strip() == "1M:64K (bytes 1048576 to 1114111)"
    assert rows["enforcers"].strip() == "fanotify, bpf"
    assert rows["deadline"].strip() == "in 12.5s"
    assert rows["waiting"].strip() == "truncate by process 7 (dd), for 1s"
    assert rows["holder"].strip() == "4711 (server), uid 0"
    assert rows["file"].strip() == str(ONE.file)


def test_show_json_and_whole_ids(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("-o", "json", "show", ONE.id)
    assert daemon.serve(Show, ONE).seal == ONE.id
    assert json.loads(running.result()[1]) == as_json(ONE)


@pytest.mark.parametrize(
    ("prefix", "status", "said"), [("77", 4, "no-such-seal"), ("6", 2, "beginning or end of 2 ids")]
)
def test_show_unknown_or_ambiguous(
    daemon: FakeDaemon, sealctl: Start, prefix: str, status: int, said: str
) -> None:
    running = sealctl("show", prefix)
    connection = daemon.accept()
    connection.answer(connection.request(List)[0], SealPage(seals=[TWO, seal(id="6" * 24)]))
    if status == 4:  # of a seal that is over, then?
        request, _ = connection.request(History)
        assert request.wanted.part == prefix
        connection.answer(request, SealHistory(seals=[]))
    got, _, err = running.result()
    assert got == status
    assert said in err


def test_show_recorded_extents(daemon: FakeDaemon, sealctl: Start) -> None:
    extents = [
        Extent(logical=0, physical=1 << 30, length=1 << 20, flags=[]),
        Extent(logical=1 << 20, physical=1 << 21, length=4096, flags=["last"]),
    ]
    for form in ("human", "json"):
        running = sealctl("show", ONE.id, "--extents", "-o", form)
        connection = daemon.accept()
        request, _ = connection.request(Extents)
        connection.answer(request, ExtentPage(extents=extents[:1], total=2, next=1))
        request, _ = connection.request(Extents)
        assert request.start == 1
        connection.answer(request, ExtentPage(extents=extents[1:], total=2))
        status, out, _ = running.result()
        assert status == 0
        if form == "json":
            assert json.loads(out) == as_json(ExtentPage(extents=extents, total=2))
        else:
            assert out.splitlines()[2].split() == ["1", "1M", "2M", "4K", "last"]


@pytest.mark.parametrize(
    ("arguments", "scope"),
    [
        (("--path", "/a", "--range", "0:2M"), {"path": "/a", "range": ByteRange(0, 2 << 20)}),
        (("--filesystem", "/pmem"), {"filesystem": "/pmem"}),
        (("--pid", "7"), {"pid": 7}),
        (("--all",), {"all": True}),
        ((ONE.id,), {"seal": ONE.id}),
    ],
)
def test_recall_scopes(
    daemon: FakeDaemon, sealctl: Start, arguments: tuple[str, ...], scope: dict[str, Any]
) -> None:
    running = sealctl("recall", *arguments, "--grace", "5s", "--reason", "why")
    report = RecallReport(recalled=[RecallOutcome(seal=ONE.id, state=State.RECALLED)])
    request = daemon.serve(RecallSeals, report)
    wanted = RecallSeals(id=request.id, grace=5.0, reason="why", **scope)
    assert request == wanted
    status, out, _ = running.result()
    assert status == 0
    assert out.splitlines()[1].split() == [ONE.id, "recalled"]


@pytest.mark.parametrize(("state", "status"), [(State.RETURNED, 0), (State.FENCE_FAILED, 1)])
def test_recall_of_several_ids_with_wait(
    daemon: FakeDaemon, sealctl: Start, state: State, status: int
) -> None:
    running = sealctl("recall", ONE.id, TWO.id, "--wait", "-o", "json")
    connection = daemon.accept()
    outcomes = []
    for wanted in (ONE, TWO):
        request, _ = connection.request(RecallSeals)
        assert (request.seal, request.wait) == (wanted.id, True)
        outcomes.append(RecallOutcome(seal=wanted.id, state=state))
        connection.answer(request, RecallReport(recalled=outcomes[-1:]))
    got, out, _ = running.result()
    assert got == status
    assert json.loads(out) == as_json(RecallReport(recalled=outcomes))


def test_nothing_to_recall(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("recall", "--all")
    daemon.serve(RecallSeals, RecallReport(recalled=[]))
    assert running.result() == (0, "", "sealctl: nothing to recall\n")
