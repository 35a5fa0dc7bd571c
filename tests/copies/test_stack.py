"""Where a byte of a stack of device-mapper lies, by tables as dmsetup tells them."""

from __future__ import annotations

import os

import pytest

from sealsvc.copies import stack
from sealsvc.copies.stack import Segment, Stack, Unresolved

TOP, ONE, TWO = os.makedev(253, 0), os.makedev(7, 1), os.makedev(7, 2)
S = stack.SECTOR


def over(monkeypatch: pytest.MonkeyPatch, *lines: str) -> Stack:
    def table(device: int) -> list[stack._Target]:
        return [stack._parsed(line) for line in lines] if device == TOP else []

    monkeypatch.setattr(stack, "_read_table", table)
    return Stack()


def walked(found: Stack, offset: int, length: int) -> list[Segment]:
    parts = []
    while length:
        parts.append(found.first_segment(TOP, offset, length))
        offset, length = offset + parts[-1].length, length - parts[-1].length
    return parts


def test_linear_targets_are_cut_where_they_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    found = over(monkeypatch, "0 100 linear 7:2 50", "100 200 linear 7:1 8")
    assert walked(found, 90 * S, 20 * S) == [
        Segment(TWO, 140 * S, 10 * S),
        Segment(ONE, 8 * S, 10 * S),
    ]
    assert found.leaves(TOP) == {ONE, TWO}
    with pytest.raises(Unresolved):
        found.first_segment(TOP, 300 * S, S)


def test_stripes_go_round(monkeypatch: pytest.MonkeyPatch) -> None:
    found = over(monkeypatch, "0 64 striped 2 8 7:1 0 7:2 100")
    assert walked(found, 4 * S, 24 * S) == [
        Segment(ONE, 4 * S, 4 * S),
        Segment(TWO, 100 * S, 8 * S),
        Segment(ONE, 8 * S, 8 * S),
        Segment(TWO, 108 * S, 4 * S),
    ]


def test_what_is_not_followed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unresolved, match="device-mapper's crypt"):
        over(monkeypatch, "0 64 crypt aes-xts-plain64 :32:logon:key 0 7:1 0").leaves(TOP)


def test_a_leaf_is_where_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    found = over(monkeypatch, "0 64 linear 7:1 0")
    assert found.first_segment(ONE, 4096, 512) == Segment(ONE, 4096, 512)
    assert found.leaves(ONE) == {ONE}
