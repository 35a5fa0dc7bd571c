from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import Alarms
from sealsvc.protocol.events import Event
from sealsvc.service import alarms
from sealsvc.service.alarms import AlarmList


async def at_once(function: Callable[..., Any], *arguments: object) -> None:
    function(*arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "alarms.json"


@pytest.fixture
def kept(file: Path) -> AlarmList:
    return AlarmList(file, at_once)


def event(
    reason: str,
    seq: int = 1,
    path: str | None = None,
    name: str = "alarm",
    seal: str | None = None,
) -> Event:
    data = {"reason": reason}
    return Event(seq=seq, time=float(seq), name=name, seal=seal, path=path, data=data)


def ask(kept: AlarmList, **fields: Any) -> list[tuple[str, int]]:
    return [(a.reason, a.count) for a in kept.page(Alarms(id=1, **fields)).alarms]


def test_the_same_alarm_is_kept_once(kept: AlarmList) -> None:
    kept.hear(event("fanotify may have let 3 operations through", 1))
    kept.hear(event("an overlay", 2))
    kept.hear(event("fanotify may have let 12 operations through", 3))
    kept.hear(event("nothing", name="granted"))
    assert ask(kept) == [("fanotify may have let 12 operations through", 2), ("an overlay", 1)]
    (first, _) = kept.page(Alarms(id=1)).alarms
    assert (first.first, first.last) == (1.0, 3.0)


def test_an_acknowledged_alarm_is_open_again_when_it_comes_again(kept: AlarmList) -> None:
    kept.hear(event("x"))
    (alarm,) = kept.page(Alarms(id=1)).alarms
    assert kept.acknowledge(alarm.id, "alice", None).acknowledged_by == "alice"
    assert kept.acknowledge(alarm.id, "bob", None).acknowledged_by == "alice"
    assert (kept.open, ask(kept, open=True)) == (0, [])
    kept.hear(event("x", 2))
    assert (kept.open, ask(kept, open=True)) == (1, [("x", 2)])


def test_a_scope_sees_its_own_alone(kept: AlarmList) -> None:
    kept.hear(event("mine", path="/srv/a/x"))
    kept.hear(event("theirs", path="/srv/b/x"))
    kept.hear(event("of everything"))
    assert ask(kept, below=["/srv/a"]) == [("mine", 1)]
    for alarm in kept.page(Alarms(id=1)).alarms[:2]:
        with pytest.raises(Refusal, match="no alarm"):
            kept.acknowledge(alarm.id, "eve", ["/srv/a"])


def test_they_outlive_the_service(kept: AlarmList, file: Path) -> None:
    kept.hear(event("x"))
    asyncio.run(kept.save())
    assert file.stat().st_mode & 0o777 == 0o600
    again = AlarmList(file, at_once)
    again.load()
    assert ask(again) == [("x", 1)]
    before = file.stat().st_ino
    asyncio.run(again.save())
    assert file.stat().st_ino == before, "nothing has changed"


@pytest.mark.parametrize("damage", [b"", b"{", b'[{"id":1}]', b"\xff"])
def test_a_damaged_file_is_begun_anew(kept: AlarmList, file: Path, damage: bytes) -> None:
    file.write_bytes(damage)
    kept.load()
    kept.hear(event("x"))
    assert ask(kept) == [("x", 1)]


def test_what_makes_room(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms, "MOST", 3)
    kept = AlarmList(file, at_once)
    for word in ("one", "two", "three"):
        kept.hear(event(word))
    kept.acknowledge(kept.page(Alarms(id=1)).alarms[0].id, "alice", None)
    kept.hear(event("four"))
    assert [reason for reason, _ in ask(kept)] == ["four", "two", "one"]
    assert kept.dropped == 0
    kept.hear(event("five"))
    assert [reason for reason, _ in ask(kept)] == ["five", "four", "two"]
    assert kept.page(Alarms(id=1)).dropped == 1


def test_alarms_about_one_users_seals_drive_out_no_others(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "MOST", 20)
    kept = AlarmList(file, at_once, {"theirs": 1001}.get)
    kept.hear(event("an enforcer has lapsed"))
    kept.hear(event("lost", seal="theirs"))
    for number in range(500):
        monkeypatch.setattr(kept, "_owner_of", lambda seal: 1001 if seal == "theirs" else 1000)
        kept.hear(event("lost", 2 + number, seal=f"{number:x}"))
    found = kept.page(Alarms(id=1, limit=100))
    assert {("an enforcer has lapsed", ""), ("lost", "theirs")} <= {
        (alarm.reason, alarm.seal) for alarm in found.alarms
    }
    assert (found.total, found.dropped) == (20, 482)
