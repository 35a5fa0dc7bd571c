"""A bounded memory that users share."""

from __future__ import annotations

from sealsvc.runtime.fair_map import FairMap


def test_who_floods_it_loses_its_own() -> None:
    kept: FairMap[int, str] = FairMap(10)
    for key in range(3):
        assert kept.put(key, f"quiet {key}", "quiet") is None
    for key in range(100, 107):
        assert kept.put(key, f"loud {key}", "loud") is None
    assert kept.full
    assert kept.put(107, "loud 107", "loud") == "loud 100"
    assert kept.put(3, "quiet 3", "quiet") == "loud 101"
    assert list(kept.values())[:3] == ["quiet 0", "quiet 1", "quiet 2"]
    assert list(kept.newest())[:2] == ["quiet 3", "loud 107"]
    assert (len(kept), kept.get(101), kept.get(102)) == (10, None, "loud 102")


def test_an_entry_is_put_once() -> None:
    kept: FairMap[str, int] = FairMap(2)
    kept.put("a", 1, "x")
    kept.put("b", 2, "x")
    assert kept.put("a", 3, "y") is None, "it takes the place of the first"
    kept.replace("b", 4)
    assert list(kept.values()) == [4, 3]
    assert (kept.pop("a"), kept.pop("a"), len(kept)) == (3, None, 1)
