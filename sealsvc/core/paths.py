"""Paths as names: no file system is asked."""

from __future__ import annotations

from collections.abc import Iterable


def lies_below(path: str, directories: Iterable[str]) -> bool:
    """Whether the path, as it is written, is one of the directories or in one of them."""
    if ".." in path.split("/"):
        return False
    roots = [directory.rstrip("/") for directory in directories]
    return any(path == root or path.startswith(root + "/") for root in roots)
