"""A holder: grants of every kind, kept, mapped and given back at random; honest in most of them."""

from __future__ import annotations

import mmap
import os
import random
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Recall, Reclaim, Return, SealInfo
from tests.soak.intruder import UNIT, UNITS
from tests.soak.observer import Told
from tests.soak.stats import Stats
from tests.support.waiting import PATIENCE

FINISH = 60.0  # seconds
MOST = 12  # seals at a time


@dataclass
class Held:
    seal: str
    file: tuple[int, int]  # device and inode
    span: tuple[int, int]  # offset and length
    fd: int
    until: float
    mapping: mmap.mmap | None
    ignored: bool  # its recall
    certain: bool = True


class Holder:
    def __init__(self, seed: str, socket: str, told: Told, files: list[str], stats: Stats) -> None:
        self.chance = random.Random(seed)
        self.socket, self.told, self.files, self.stats = socket, told, files, stats
        self.counts = stats.counts
        self.held: dict[str, Held] = {}
        self.client: Client | None = None

    def run(self) -> None:
        while not select.select([sys.stdin], [], [], 0)[0]:
            self.once(self.act)
            self.stats.write_if_due()
        deadline = time.monotonic() + FINISH
        while self.held and time.monotonic() < deadline:
            self.once(self.give_all_back)
        if self.held:
            self.stats.trouble(f"{sorted(self.held)} could not be returned")
        self.stats.write()

    def once(self, act: object) -> None:
        try:
            if self.client is None:
                self.connect()
            act()  # type: ignore[operator]
        except TimeoutError as error:
            self.stats.trouble(f"no answer: {error}")
            self.disconnect()
        except Refusal as refusal:
            if refusal.code != "service-unavailable":
                raise
            self.disconnect()
            time.sleep(0.02)

    def disconnect(self) -> None:
        if self.client is not None:
            self.client.close()
        self.client = None

    def connect(self) -> None:
        self.client = Client(self.socket, timeout=PATIENCE)
        self.counts["connections"] += 1
        for held in tuple(self.held.values()):
            for _ in range(100):
                try:
                    self.client.call(Reclaim, seal=held.seal)
                    self.counts["reclaims"] += 1
                    break
                except Refusal as refusal:
                    if refusal.code == "seal-conflict":  # our old connection is not gone yet
                        time.sleep(0.02)
                        continue
                    if refusal.code != "no-such-seal":
                        raise
                    if held.certain and boottime() < held.until:
                        self.stats.trouble(f"seal {held.seal} was lost")
                    self.forget(held)
                    break

    def act(self) -> None:
        assert self.client
        chance = self.chance.random()
        for push in self.client.pushes(0):
            if isinstance(push, Recall) and push.seal in self.held:
                self.counts["recalls heard"] += 1
                if self.held[push.seal].ignored:
                    self.counts["recalls ignored"] += 1
                    continue
                self.give_back(self.held[push.seal])
        for held in tuple(self.held.values()):
            if boottime() > held.until + 0.2:
                self.counts["ttls over"] += 1
                self.give_back(held)
        if chance < 0.001:
            self.counts["holders that hung"] += 1
            time.sleep(1.2)
        elif chance < 0.0015:
            self.die()
        elif self.held and (len(self.held) >= MOST or chance < 0.45):
            self.give_back(self.chance.choice(list(self.held.values())))
        else:
            self.grant()
        time.sleep(self.chance.random() * 0.02)

    def grant(self) -> None:
        assert self.client
        chance = self.chance
        start = chance.randrange(UNITS - 1) * UNIT
        length = min(chance.randrange(1, 6) * UNIT, UNITS * UNIT - start)
        if chance.random() < 0.2:  # of no whole blocks
            start, length = start + 1234, length - 2345
        kind = "exclusive" if chance.random() < 0.15 else "shared"
        ttl = chance.choice([0, 0, 0, 0.3, 1.0])
        fields = {
            "kind": kind,
            "conflict": chance.choice(["wait", "wait", "refuse"]),
            "fence": chance.choice(["none", "signal", "kill"]),
            "grace": chance.choice([0.3, 1.0, 5.0]),
            "ttl": ttl,
            "prepare": chance.choice([["allocate", "convert", "unshare"]] * 3 + [[]]),
        }
        before = boottime()
        self.counts["grants asked for"] += 1
        try:
            reply = self.client.grant(
                path=chance.choice(self.files), offset=start, length=length, **fields
            )
        except Refusal as refusal:
            if refusal.code == "service-unavailable":
                raise
            if refusal.code == "internal":
                self.stats.trouble(str(refusal))
            why = f": {refusal}" if refusal.code == "io-error" else ""
            self.counts[f"refused: {refusal.code}{why}"] += 1
            return
        self.counts[f"granted: {kind}"] += 1
        until = before + ttl if ttl else float("inf")
        self.keep(reply.seal, reply.fds[0], until)

    def keep(self, seal: SealInfo, fd: int, until: float) -> None:
        span = (seal.effective.offset, seal.effective.length)
        what = f"{seal.kind} {seal.conflict} {seal.fence} ttl {seal.ttl} by {seal.enforcers}"
        self.told.granted(seal.id, fd, span, until, what)
        mapping = None
        if self.chance.random() < 0.5:
            try:
                mapping = mmap.mmap(fd, span[1], mmap.MAP_SHARED, mmap.PROT_READ, offset=span[0])
            except ValueError:  # truncated: its time is up already
                if boottime() < until:
                    self.stats.trouble(f"{seal.id} was truncated")
        st = os.fstat(fd)
        ignored = self.chance.random() < 0.1
        file = (st.st_dev, st.st_ino)
        self.held[seal.id] = Held(seal.id, file, span, fd, until, mapping, ignored)

    def give_back(self, held: Held) -> None:
        assert self.client
        may_lie = held.mapping and boottime() < held.until and not self._explained(held)
        if may_lie and self.chance.random() < 0.1:
            self.lie(held)
        self.forget(held)
        self.held[held.seal] = held
        held.certain = False
        try:
            self.client.call(Return, seal=held.seal)
            self.counts["returned"] += 1
        except Refusal as refusal:
            if refusal.code == "service-unavailable":
                raise
            if refusal.code == "still-mapped":  # by another, whose seal is over: once more, later
                self.counts["returns of what others map"] += 1
                return
            if refusal.code != "no-such-seal":
                self.stats.trouble(f"return of {held.seal}: {refusal}")
        del self.held[held.seal]

    def give_all_back(self) -> None:
        for held in tuple(self.held.values()):
            self.give_back(held)

    def _explained(self, held: Held) -> bool:
        """Whether another of our seals, of the same file, explains that we map a part of this
        one's range (docs/fencing.md): the service may take its return then."""
        start, length = held.span
        return any(
            other.file == held.file and other.span[0] < start + length and start < sum(other.span)
            for other in self.held.values()
            if other is not held
        )

    def lie(self, held: Held) -> None:
        """A return of what is mapped is refused; the time of the seal may be up meanwhile."""
        assert self.client
        try:
            self.client.call(Return, seal=held.seal)
        except Refusal as refusal:
            if refusal.code == "service-unavailable":
                raise
            self.counts[f"lies: {refusal.code}"] += 1
            return
        self.stats.trouble(f"{held.seal} was returned, and is mapped")

    def forget(self, held: Held) -> None:
        if held.fd < 0:
            self.held.pop(held.seal, None)
            return
        self.told.over(held.seal)
        if held.mapping:
            held.mapping.close()
        os.close(held.fd)
        held.fd, held.mapping = -1, None
        self.held.pop(held.seal, None)

    def die(self) -> None:
        """With everything that it has; at times a child has that too, a little longer."""
        self.counts["holders that died"] += 1
        self.stats.write()
        if self.chance.random() < 0.5 and os.fork() == 0:
            time.sleep(0.5)
        os._exit(0)


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def main() -> None:
    seed, directory, name, socket, observer, *files = sys.argv[1:]
    stats = Stats(Path(directory), name)
    Holder(seed, socket, Told(observer), files, stats).run()


if __name__ == "__main__":
    main()
