"""What the registry's tests record, and how they wait for it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import (
    ByteRange,
    Conflict,
    Fence,
    FileId,
    Holder,
    IoMode,
    Kind,
    Operation,
    Requirements,
    State,
)
from sealsvc.linux.processes import Peer
from sealsvc.protocol.events import Event
from sealsvc.protocol.seals import SealInfo
from sealsvc.registry.book import Book
from sealsvc.runtime.config import RegistrySection
from tests.support.waiting import until

B = 4096
T = float(int(time.time()))  # what is much older is deleted
PEER = Peer(pid=5, uid=1000, gid=1000)


def info(number: int, *, path: str = "", at: float = T, pid: int = 77) -> SealInfo:
    return SealInfo(
        id=f"{number:024x}",
        seqid=1,
        state=State.GRANTED,
        file=FileId(66, number, 3),
        path=path or f"/m/{number}",
        filesystem="xfs",
        range=ByteRange(0, 8 * B),
        effective=ByteRange(0, 8 * B),
        iomode=IoMode.RW,
        kind=Kind.SHARED,
        conflict=Conflict.WAIT,
        fence=Fence.NONE,
        grace=10.0,
        ttl=0.0,
        tag="t",
        require=Requirements(),
        enforcers=["fanotify"],
        accepted_risks=[],
        holder=Holder(pid=pid, start_time=2, uid=1000, comm="holder"),
        extents=2,
        granted_at=at,
        state_since=at,
    )


def map_of(number: int) -> ExtentMap:
    """8 blocks in two extents, elsewhere for each number."""
    rows = [[0, (100 + number) * B, 3 * B, 0], [3 * B, (500 + number) * B, 5 * B, 1]]
    return np.array(rows, dtype=np.uint64)


def event(name: str, seal: str | None = None, /, *, at: float = T + 1, **data: Any) -> Event:
    return Event(seq=1, time=at, name=name, seal=seal, data=data)


def moved(seal: SealInfo, to: State, seqid: int = 2, *, at: float = T + 1) -> Event:
    data = {"from": seal.state, "to": to, "reason": "why", "seqid": seqid}
    return event("state", seal.id, at=at, **data)


def operation(pid: int = 9, name: str = "fallocate-punch-hole") -> Operation:
    return Operation(name, 0, B, pid, pid, "dd", 0)


class Told:
    """The alarms and recoveries of a registry."""

    def __init__(self) -> None:
        self.alarms: list[str] = []
        self.recoveries: list[int] = []


def registry(directory: Path, told: Told, **options: Any) -> Book:
    section = {
        name: options.pop(name) for name in ("retention_days", "max_bytes") if name in options
    }
    made = Book(
        RegistrySection(directory=str(directory), **section),
        told.alarms.append,
        told.recoveries.append,
        **{"retry": 0.05, **options},
    )
    made.start()
    return made


def written(book: Book) -> None:
    until(lambda: not book.lag)


def fill(ballast: Path) -> None:
    """Until the file system has no byte left."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while True:
                    file.write(b"x" * size)
