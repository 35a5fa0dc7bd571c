"""A holder that stores through its mapping without pause, and quiesces when it is asked to."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

from sealsvc.client import Client, Reply
from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import JobInfo, JobState, ShowJob
from sealsvc.protocol.relocation import Goal, Quiesce, Relocate
from sealsvc.protocol.seals import Extents, Recall, Return
from tests.support.waiting import PATIENCE

PIECE = 65536


def fragmented(path: Path, pieces: int) -> bytes:
    """A file of 64 KiB pieces that were written from its end on: on XFS each is an extent."""
    data = os.urandom(pieces * PIECE)
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        for at in range(len(data) - PIECE, -1, -PIECE):
            os.pwrite(fd, data[at : at + PIECE], at)
            os.fsync(fd)
    finally:
        os.close(fd)
    return data


def granted(client: Client, path: Path) -> Reply:
    """A shared seal that waits."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return client.grant(path=str(path), kind="shared", conflict="wait", grace=200)
        except Refusal as refusal:
            if refusal.code != "try-later" or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class Holder(threading.Thread):
    """Holder `number`: each stores to bytes of its own, `within` the first bytes of the file (0: it
    stores nothing). `stored` has what it stored last, `pauses` how long each pause was, in seconds,
    `maps` the map after each."""

    def __init__(self, socket: str, path: Path, number: int = 0, within: int = 1 << 40) -> None:
        super().__init__(daemon=True)
        self.socket, self.path, self.number, self.within = socket, path, number, within
        self.stored: dict[int, bytes] = {}
        self.pauses: list[float] = []
        self.maps: list[Any] = []
        self.recalls: list[Recall] = []
        self._ready, self._end = threading.Event(), threading.Event()

    def __enter__(self) -> Holder:
        self.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join(PATIENCE)
        assert not self.is_alive()

    def run(self) -> None:
        with Client(self.socket) as client:
            reply = granted(client, self.path)
            fd, self.seal = reply.fds[0], reply.seal.id
            area = mmap.mmap(fd, 0)
            self._ready.set()
            chance = random.Random(self.number)
            while not self._end.is_set():
                for push in client.pushes(0.002):
                    if isinstance(push, Recall):
                        self.recalls.append(push)
                        area.close()
                        self._pause(client)
                        area = mmap.mmap(fd, 0)
                if self.within:
                    at = chance.randrange(min(len(area), self.within) // 64) * 64 + self.number * 2
                    self.stored[at] = area[at : at + 2] = chance.randbytes(2)
            area.close()
            os.close(fd)
            client.call(Return, seal=self.seal)

    def _pause(self, client: Client) -> None:
        began = time.monotonic()
        client.call(Quiesce, seal=self.seal)
        for push in client.pushes(PATIENCE):
            if isinstance(push, Recall) and push.state == "granted":
                self.pauses.append(time.monotonic() - began)
                self.maps.append(client.call(Extents, seal=self.seal).result)
                return


def relocated(client: Client, path: Path, goal: Goal, **fields: Any) -> JobInfo:
    """The job at its end."""
    job = client.call(Relocate, path=str(path), goal=goal, **fields).result
    assert isinstance(job, JobInfo)
    return ended(client, job.id)


def ended(client: Client, job: str) -> JobInfo:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = client.call(ShowJob, job=job).result
        assert isinstance(found, JobInfo)
        if found.state is not JobState.RUNNING:
            return found
        time.sleep(0.01)
    raise AssertionError("the job does not end")


def as_stored(data: bytes, *holders: Holder) -> bytes:
    """What a file that held `data` must hold now."""
    expected = bytearray(data)
    for holder in holders:
        for at, stored in holder.stored.items():
            expected[at : at + 2] = stored
    return bytes(expected)
