"""What a relocation is about to do, on disk before it does it."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path

import msgspec

from sealsvc.protocol.relocation import Goal


class Phase(StrEnum):
    """`copy`: nothing but a file without a name was touched. `recall`: the seals named are being
    recalled; the map is as they recorded it. `swap`: every seal named is quiesced or over, and the
    map may have changed."""

    COPY = "copy"
    RECALL = "recall"
    SWAP = "swap"


class Record(msgspec.Struct, kw_only=True):
    """One relocation. `begun` counts how often a service took it up. `replace`: by a new inode,
    `donor`, which is called `temporary` in the file's directory before it takes the name."""

    id: str
    path: str
    device: int
    inode: int
    goal: Goal
    grace: float
    principal: str
    phase: Phase = Phase.COPY
    seals: list[str] = []
    begun: int = 0
    replace: bool = False
    temporary: str = ""
    donor: int = 0


class Records:
    """A file for each relocation in a directory. Raises OSError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, record: Record) -> None:
        """Durable when it returns."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = self._path(record).with_suffix(".new")
        with made.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        made.rename(self._path(record))
        self._sync()

    def remove(self, record: Record) -> None:
        self._path(record).unlink(missing_ok=True)
        self._sync()

    def read(self) -> list[Record]:
        """Those that a service before this one left."""
        return [
            msgspec.json.decode(path.read_bytes(), type=Record)
            for path in sorted(self.directory.glob("*.json"))
        ]

    def _path(self, record: Record) -> Path:
        return self.directory / f"{record.id}.json"

    def _sync(self) -> None:
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
