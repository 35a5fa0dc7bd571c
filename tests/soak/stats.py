"""Counts of a process that may be killed at any time: written often, read when all is over."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

_EVERY = 0.2  # seconds


class Stats:
    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.path = directory, directory / f"stats-{name}.json"
        self.counts: Counter[str] = Counter()
        self._due = 0.0

    def write_if_due(self) -> None:
        if time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        self._due = time.monotonic() + _EVERY
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self.counts))
        new.rename(self.path)

    def trouble(self, text: str) -> None:
        """What must not happen."""
        with (self.directory / "trouble.log").open("a") as log:
            log.write(f"{self.path.stem} (pid {os.getpid()}): {text}\n")


def total(directory: Path) -> Counter[str]:
    found: Counter[str] = Counter()
    for path in directory.glob("stats-*.json"):
        found.update(json.loads(path.read_text()))
    return found
