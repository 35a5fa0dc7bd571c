"""kill -9 at random moments, under load, among intruders: no map moves, and no seal is lost.

What a holder was told is granted stays granted, whatever instant the service dies at; the ledger
below is the holders' memory, and FIEMAP the judge.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from sealsvc.client import Client
from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.linux.native import read_extents
from sealsvc.protocol.seals import List, Recall, Reclaim, Return
from tests.service.test_races import HAMMER
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.kernel, pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("SEALSVC_KILLS", "200"))
FILES = 6
UNIT = 65536
LIVE = {"granted", "active", "recalled"}


@dataclass
class Held:
    path: Path
    range: ByteRange
    map: np.ndarray
    certain: bool = True  # no return of it was ever sent


@dataclass
class Holders:
    """A thread that asks for seals and gives them back, over and over, through every restart."""

    socket: str
    files: list[Path]
    ledger: dict[str, Held] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)
    granted: int = 0
    returned: int = 0
    restarts: int = 0
    trouble: list[str] = field(default_factory=list)

    def run(self) -> None:
        chance = random.Random(7)
        client: Client | None = None
        while not self.stop.is_set():
            try:
                if client is None:
                    client = self._connect()
                self._act(client, chance)
            except (Refusal, TimeoutError) as error:
                if isinstance(error, Refusal) and error.code != "service-unavailable":
                    self.trouble.append(str(error))
                    continue
                if client is not None:
                    client.close()
                client = None
                time.sleep(0.01)
        if client is not None:
            client.close()

    def _connect(self) -> Client:
        client = Client(self.socket, timeout=PATIENCE)
        try:
            self._reclaim(client)
        except BaseException:
            client.close()
            raise
        return client

    def _reclaim(self, client: Client) -> None:
        self.restarts += 1
        with self.lock:
            mine = list(self.ledger)
        for seal in mine:
            try:
                client.call(Reclaim, seal=seal)
            except Refusal as refusal:
                if refusal.code == "service-unavailable":
                    raise
                with self.lock:  # a return of it was under way when the service died
                    if self.ledger[seal].certain:
                        self.trouble.append(f"{seal}: {refusal}")
                    del self.ledger[seal]

    def _act(self, client: Client, chance: random.Random) -> None:
        for push in client.pushes(0):
            if isinstance(push, Recall) and push.seal in self.ledger:
                self._give_back(client, push.seal)
        with self.lock:
            held = list(self.ledger)
        if held and (len(held) > 24 or chance.random() < 0.4):
            self._give_back(client, chance.choice(held))
            return
        path = chance.choice(self.files)
        at = chance.randrange(12) * UNIT
        conflict = chance.choice(["wait", "refuse"])
        try:
            reply = client.grant(
                path=str(path), kind="shared", conflict=conflict, grace=200, offset=at,
                length=chance.randrange(1, 4) * UNIT, prepare=["allocate", "convert"],
            )  # fmt: skip
        except Refusal as refusal:
            if refusal.code == "service-unavailable":
                raise
            return  # the intruders are at it: try-later, beyond-eof, …
        found = read_extents(reply.fds[0], reply.seal.effective)
        os.close(reply.fds[0])
        self.granted += 1
        with self.lock:
            self.ledger[reply.seal.id] = Held(path, reply.seal.effective, found)

    def _give_back(self, client: Client, seal: str) -> None:
        with self.lock:
            self.ledger[seal].certain = False
        client.call(Return, seal=seal)
        self.returned += 1
        with self.lock:
            del self.ledger[seal]

    def certain(self) -> dict[str, Held]:
        with self.lock:
            return {seal: held for seal, held in self.ledger.items() if held.certain}


@contextmanager
def hammering(paths: list[Path]) -> Iterator[None]:
    intruders = [
        subprocess.Popen([sys.executable, "-c", HAMMER, path, "opening"], stdout=subprocess.PIPE)
        for path in paths
    ]
    try:
        for intruder in intruders:
            assert intruder.stdout is not None
            intruder.stdout.readline()
        yield
        assert all(intruder.poll() is None for intruder in intruders)
    finally:
        for intruder in intruders:
            intruder.kill()
            intruder.communicate()


def drifted(held: Held) -> str:
    """Where it lies now, if that is not where it lay when it was granted."""
    fd = os.open(held.path, os.O_RDONLY)
    try:
        now = read_extents(fd, held.range)
    finally:
        os.close(fd)
    if extents.same(held.map, now, held.range):
        return ""
    return f"{held.path.name} {held.range}: {held.map.tolist()} -> {now.tolist()}"


def test_nothing_moves_and_nothing_is_lost(xfs: Path, tmp_path: Path) -> None:
    killed_under_load(xfs, tmp_path, KILLS, 0.25)


def killed_under_load(
    root: Path, directory: Path, kills: int, longest: float, enforcers: Sequence[str] = ()
) -> None:
    """Let the service live for up to `longest` seconds, `kills` times; more often, up to five times
    as often, where the machine is so slow that fewer seals than that were there to be checked.
    `enforcers`: the ones to use, in their order, if not the default ones."""
    files = [root / f"kills-{os.getpid()}-{n}" for n in range(FILES)]
    for path in files:
        path.write_bytes(os.urandom(16 * UNIT))
    use = f"[enforcers]\nuse = {json.dumps(list(enforcers))}\n" if enforcers else ""
    running = Running(directory, [root], RISKS + use)
    running.start()
    running.ready()
    holders = Holders(str(running.socket), files)
    thread = threading.Thread(target=holders.run)
    chance = random.Random(11)
    checked = done = 0
    try:
        with hammering(files[:2]):
            thread.start()
            while done < kills or (checked <= kills and done < 5 * kills):
                done += 1
                # On a slow machine it takes its time until there is something to lose.
                until(lambda: len(holders.certain()) > 2, PATIENCE)
                time.sleep(chance.random() * longest)
                running.kill()
                before = holders.certain()
                bad = {seal: moved for seal, held in before.items() if (moved := drifted(held))}
                assert not bad, f"moved while nobody served: {bad}"
                running.start()
                if chance.random() < 0.2:  # killed in the middle of its start, too
                    time.sleep(chance.random() * 2 * longest)
                    running.kill()
                    running.start()
                running.ready()
                checked += len(before)
                with Client(str(running.socket), timeout=PATIENCE) as client:
                    there = _all(client)
                left = holders.certain()
                lost = [s for s in before if s in left and there.get(s) not in LIVE]
                assert not lost, f"lost: {[(s, there.get(s)) for s in lost]}"
            holders.stop.set()
            thread.join(PATIENCE)
    finally:
        holders.stop.set()
        thread.join(PATIENCE)
        running.end()
        for path in files:
            with suppress(FileNotFoundError):
                path.unlink()
    print(
        f"{done} kills, {checked} seals checked after them; {holders.granted} granted,"
        f" {holders.returned} returned, {holders.restarts} connections"
    )
    assert not holders.trouble, holders.trouble
    assert checked > kills
    assert holders.restarts > kills / 2


def _all(client: Client) -> dict[str, str]:
    found: dict[str, str] = {}
    after = None
    while True:
        page = client.call(List, after=after, limit=1000).result
        found |= {seal.id: seal.state for seal in page.seals}
        if page.next is None:
            return found
        after = page.next
