"""Whose entries there is room for, and what is told of those that there was none for."""

from __future__ import annotations

import numpy as np
import pytest
from registry_support import info, map_of

from sealsvc.registry import backlog
from sealsvc.registry.backlog import Backlog
from sealsvc.registry.entries import Entry


def entry(kind: str = "conflict", at: float = 1.0) -> Entry:
    return Entry(at, kind, None, {})


def fill(kept: Backlog, user: int | None, *, vital: bool, most: int = 10_000) -> int:
    """How many one user gets in."""
    return sum(kept.put(entry(), user, vital=vital) for _ in range(most))


def test_one_user_fills_half_of_one_half() -> None:
    kept = Backlog(room=2000)
    assert fill(kept, 1, vital=False) == 500
    assert fill(kept, 1, vital=True) == 500  # its conflicts are not in the way of its grants


def test_there_is_always_room_for_another_user() -> None:
    kept = Backlog(room=2000)
    for user in range(8):
        assert fill(kept, user, vital=False) >= 1
    assert fill(kept, 99, vital=True, most=30) == 30
    assert fill(kept, None, vital=False) > 0


def test_what_was_lost_is_told_once_there_is_room() -> None:
    kept = Backlog(room=20)
    for n in range(30):
        kept.put(entry("refused" if n % 2 else "conflict", at=float(n)), 7, vital=False)
    assert kept.lost == 25
    assert kept.tell_gap()
    assert not kept.tell_gap()
    told = [found for found in (kept.take() for _ in range(6)) if found and found.kind == "lost"]
    assert [found.data for found in told] == [
        {"lost": 25, "from": 5.0, "to": 29.0, "kinds": {"refused": 13, "conflict": 12},
         "users": {"7": 25}}
    ]  # fmt: skip


def test_a_gap_is_told_when_there_is_room_again() -> None:
    kept = Backlog(room=40)
    fill(kept, 1, vital=False)
    fill(kept, 2, vital=False)
    assert not kept.tell_gap()
    for _ in range(10):
        kept.take()
    kept.settle(10)
    assert kept.tell_gap()


def test_what_is_not_settled_is_sent_again_in_order() -> None:
    kept = Backlog()
    fill(kept, 1, vital=True, most=10)
    first = [kept.take() for _ in range(6)]
    kept.settle(2)
    assert (len(kept), kept.sent, kept.waiting) == (8, 4, 4)
    kept.send_again()
    again = [kept.take() for _ in range(8)]
    assert [found.number for found in again if found] == list(range(3, 11))
    assert first[2:] == again[:4]
    kept.settle(10)
    assert len(kept) == 0
    assert fill(kept, 1, vital=True, most=5000) == 5000


def test_maps_wait_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "BYTES_OF_MAPS", 100)
    kept = Backlog()
    large = np.zeros((1000, 4), np.uint64)
    for n in range(3):
        seal = info(n)
        made = Entry(1.0, "granted", seal.id, {}, (seal,), ((seal.id, large),))
        assert kept.put(made, 1, vital=True)
    present = Entry(1.0, "present", None, {}, (seal,), ((seal.id, map_of(1)),))
    kept.put(present, None, vital=True)
    found = [kept.take() for _ in range(4)]
    assert [len(one.maps) for one in found if one] == [1, 0, 0, 1]
