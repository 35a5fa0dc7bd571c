"""A control group of a test's own, of either version of cgroups(7)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_ROOT = Path("/sys/fs/cgroup")
# By what is limited: the controller, and the file with the limit in version 1 and 2.
_LIMITS = {
    "pids": ("pids", "pids.max", "pids.max"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.max"),
}


class Group:
    """Limits what its processes use of one resource, "pids" or "memory"."""

    def __init__(self, what: str) -> None:
        """Skips the test where no such group can be made."""
        self._controller, old, new = _LIMITS[what]
        name = f"sealsvc-test-{os.getpid()}"
        below = _ROOT / self._controller
        self._version1 = below.is_dir()
        self.path = (below if self._version1 else _ROOT) / name
        try:
            if not self._version1:
                (_ROOT / "cgroup.subtree_control").write_text(f"+{self._controller}")
            self.path.mkdir()
        except OSError as error:
            pytest.skip(f"no control group for {what} can be made: {error}")
        self.limit_file = self.path / (old if self._version1 else new)

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def limit(self, most: int | None) -> None:
        """None: no limit."""
        none = "-1" if self._version1 and self._controller == "memory" else "max"
        self.limit_file.write_text(none if most is None else str(most))

    def used(self) -> int:
        names = {"pids": "pids.current", "memory": "memory.current"}
        name = "memory.usage_in_bytes" if self._version1 and self._controller == "memory" else ""
        return int((self.path / (name or names[self._controller])).read_text())

    def end(self) -> None:
        """Remove it; its processes go back to where everybody is."""
        with suppress(OSError):
            self.limit(None)
        home = _ROOT / self._controller if self._version1 else _ROOT
        for _ in range(100):
            for pid in (self.path / "cgroup.procs").read_text().split():
                with suppress(OSError):
                    (home / "cgroup.procs").write_text(pid)
            try:
                self.path.rmdir()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"{self.path} cannot be removed")


@contextmanager
def group(what: str, pids: Iterable[int]) -> Iterator[Group]:
    made = Group(what)
    try:
        for pid in pids:
            made.add(pid)
        yield made
    finally:
        made.end()
