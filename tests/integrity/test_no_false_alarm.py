"""Writers, partial returns, recalls, scrubs, verifications and kills at once: nothing is called
corrupt or changed. A few seconds; `python -m tests.integrity.soak --minutes 10` makes it longer,
SEALSVC_SEED repeats a run."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.protocol.integrity import (
    PiAttach,
    PiAttachments,
    PiErrors,
    PiOpen,
    PiScrub,
    PiTag,
    PiVerify,
)
from sealsvc.protocol.seals import List, RecallSeals, Reclaim, Return
from tests.integrity.conftest import BLOCK, MiB
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE

SECONDS = float(os.environ.get("SEALSVC_SOAK", "8"))
SIZE = 2 * MiB
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(SECONDS + 240)]


def part_of(generator: random.Random) -> ByteRange:
    first = generator.randrange(SIZE // BLOCK - 32)
    return ByteRange(first * BLOCK, generator.randrange(1, 32) * BLOCK)


_DONE = {"seals", "recalls", "looks"}


class Soak:
    def __init__(self, socket: str, point: Path, until: float) -> None:
        self.socket, self.point, self.until = socket, point, until
        self.counts: dict[str, int] = {}

    def going(self) -> bool:
        """Until the time is over, and each has come to something."""
        return time.monotonic() < self.until or not self.counts.keys() >= _DONE

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def life(self, client: Client, path: Path, generator: random.Random, writes: str) -> None:
        """One seal: granted, written to, given back in one piece or two."""
        reply = client.grant(path=str(path))
        seal, fd = reply.seal.id, reply.fds[0]
        try:
            with suppress(Refusal):
                client.call(PiAttach, seal=seal, profile="t10-dif1-4096", writes=writes, quiet=True)
            for _ in range(generator.randrange(6)):
                part = part_of(generator)
                if writes == "declared":
                    client.call(PiOpen, seal=seal, range=part)
                os.pwrite(fd, generator.randbytes(part.length), part.offset)
                if writes == "declared":
                    client.call(PiTag, seal=seal, range=part)
                self.count("writes")
        finally:
            os.close(fd)
        if generator.random() < 0.2:
            client.call(RecallSeals, seal=seal)
            self.count("recalls")
        elif generator.random() < 0.3:
            half = ByteRange(SIZE // 2, SIZE // 2)
            client.call(Return, seal=seal, range=half)
        client.call(Return, seal=seal)
        self.count("seals")

    def holder(self, number: int, seed: int) -> None:
        generator = random.Random(seed)
        path, writes = self.point / f"file-{number}", ("any", "declared")[number % 2]
        path.write_bytes(generator.randbytes(SIZE))
        while self.going():
            with suppress(Refusal, OSError), Client(self.socket, timeout=PATIENCE) as client:
                while self.going():
                    self.life(client, path, generator, writes)
            self.take_back(path)
            time.sleep(0.05)

    def take_back(self, path: Path) -> None:
        """After a kill: what is still sealed is returned."""
        with suppress(Refusal, OSError), Client(self.socket, timeout=PATIENCE) as client:
            for seal in client.call(List, path=str(path)).result.seals:
                with suppress(Refusal):
                    client.call(Reclaim, seal=seal.id)
                client.call(Return, seal=seal.id)

    def looker(self, seed: int) -> None:
        generator = random.Random(seed)
        while self.going():
            with suppress(Refusal, OSError), Client(self.socket, timeout=PATIENCE) as client:
                for row in client.call(PiAttachments).result.attachments:
                    if generator.random() < 0.5:
                        client.call(PiVerify, attachment=row.id)
                    else:
                        client.call(PiScrub, attachment=row.id, rate=1 << 30, restart=True)
                    self.count("looks")
            time.sleep(0.01)


def test_nothing_is_called_corrupt_that_is_not(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEALSVC_SEED", time.time_ns() & 0xFFFF))
    print(f"SEALSVC_SEED={seed}")
    with mounted("xfs") as point:
        running = Running(tmp_path, [point], RISKS)
        running.start()
        try:
            running.ready()
            soak = Soak(str(running.socket), point, time.monotonic() + SECONDS)
            threads = [threading.Thread(target=soak.holder, args=(n, seed + n)) for n in range(4)]
            threads.append(threading.Thread(target=soak.looker, args=(seed - 1,)))
            for thread in threads:
                thread.start()
            while SECONDS > 30 and soak.going():
                time.sleep(20)
                running.kill()
                running.start()
                running.ready()
                soak.count("kills")
            for thread in threads:
                thread.join()
            with Client(str(running.socket), timeout=PATIENCE) as client:
                found, page = [], client.call(PiErrors).result
                while page.errors:
                    found += page.errors
                    page = client.call(PiErrors, after=page.next).result
            kinds = {error.kind for error in found}
            assert kinds <= ({"suspect"} if SECONDS > 30 else set()), (seed, found[:3])
            assert soak.counts.keys() >= _DONE
            print(dict(sorted(soak.counts.items())), Counter(error.kind for error in found))
        finally:
            running.end()
