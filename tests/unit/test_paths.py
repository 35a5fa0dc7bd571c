"""Paths as text."""

from __future__ import annotations

import pytest

from sealsvc.core.paths import is_plain, lies_below


@pytest.mark.parametrize(
    ("path", "inside"),
    [("/a", True), ("/a/b", True), ("/ab", False), ("/a/../b", False), ("/", False)],
)
def test_below(path: str, inside: bool) -> None:
    assert lies_below(path, ["/a"]) is inside
    assert lies_below(path, ["/a/"]) is inside
    assert lies_below(path, ["/"]) is (".." not in path)


@pytest.mark.parametrize("path", ["a", "", "/a/", "/a/../b", "/a/./b", "/a//b"])
def test_what_is_not_plain(path: str) -> None:
    assert not is_plain(path)


def test_what_is_plain() -> None:
    assert is_plain("/")
    assert is_plain("/a/b.c")
