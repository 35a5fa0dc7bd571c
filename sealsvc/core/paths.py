"""Paths as text, without looking at a file system."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable


def is_plain(path: str) -> bool:
    """Whether the path is absolute and written without detours: no "..", ".", double or trailing
    slash."""
    return path.startswith("/") and posixpath.normpath(path) == path


def lies_below(path: str, directories: Iterable[str]) -> bool:
    """Whether the path, as it is written, is one of the directories or in one of them. False for a
    path with "..". Symbolic links are not followed."""
    if ".." in path.split("/"):
        return False
    roots = [directory.rstrip("/") for directory in directories]
    return any(path == root or path.startswith(root + "/") for root in roots)
