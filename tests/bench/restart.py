"""kill -9 of a service with very many seals: how long until the next one serves, with all of them
enforced (they are, throughout), and what a seal takes of memory.

One service is given more and more seals, and killed at each size that was asked for.
"""

from __future__ import annotations

import gc
import os
import re
import struct
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.lifecycle import journal
from sealsvc.protocol.system import Status
from tests.bench.figures import Bench, Figure, figure_of
from tests.support.service import RISKS, Running

BLOCK = 4096
A_FILE = 32  # seals
BEYOND = 1 << 20  # no limit of the policy is met
POLICY = f"""{RISKS}max_seals = {BEYOND}
max_seals_per_holder = {BEYOND}
max_seals_per_filesystem = {BEYOND}
"""


@dataclass(frozen=True)
class Restart:
    taken: float  # microseconds
    service: int  # resident bytes, and so on
    keeper: int
    journal: bytes


def reclaim(bench: Bench, rounds: int) -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as made:
        running = Running(Path(made), [bench.root], POLICY)
        running.start()
        try:
            running.ready()
            bare = [_restart(running, 0) for _ in range(rounds)]
            granted = 0
            for count in sorted(bench.seals):
                with Client(str(running.socket)) as client:
                    for number in range(granted, count):
                        _grant(bench, client, number)
                granted = count
                found = [_restart(running, count) for _ in range(max(1, min(rounds, 3)))]
                figures += _figures(count, bare, found)
        finally:
            running.end()
    return figures


def _grant(bench: Bench, client: Client, number: int) -> None:
    path = bench.root / f"reclaim-{number // A_FILE}"
    if number % A_FILE == 0:
        path.write_bytes(os.urandom(A_FILE * BLOCK))
    offset = number % A_FILE * BLOCK
    reply = client.grant(
        path=str(path), kind="shared", conflict="refuse", offset=offset, length=BLOCK
    )
    os.close(reply.fds[0])


def _restart(running: Running, expected: int) -> Restart:
    """kill -9, and the next service until it answers; processes and interpreters included."""
    running.kill()
    begun = time.perf_counter()
    running.start()
    while True:
        try:
            with Client(str(running.socket)) as client:
                told = client.call(Status).result
            break
        except Refusal:
            time.sleep(0.001)
    taken = time.perf_counter() - begun
    assert told.seals == ({"granted": expected} if expected else {}), told.seals
    keeper = next(p for p in psutil.process_iter(["cmdline"]) if _keeps(p, running))
    assert running.process is not None
    service = running.process.pid
    return Restart(taken * 1e6, _resident(service), _resident(keeper.pid), _journal_of(service))


def _keeps(process: psutil.Process, running: Running) -> bool:
    return str(running.directory / "keeper.sock") in (process.info["cmdline"] or ())


def _resident(pid: int) -> int:
    found = re.search(r"^VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def _journal_of(pid: int) -> bytes:
    """Its records."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        if "sealsvc-journal" in os.readlink(link):
            whole = link.read_bytes()
            (tail,) = struct.unpack_from("=Q", whole, 8)
            return whole[64:tail]
    raise AssertionError("the service has no journal")


_decode = msgspec.msgpack.Decoder(journal.Granted | journal.Progress | journal.Ended).decode


def _decoded(records: bytes) -> float:
    """Microseconds that it takes to decode them, and nothing else."""
    gc.disable()
    try:
        begun, at = time.perf_counter(), 0
        kept = []
        while at < len(records):
            (size,) = struct.unpack_from("=I", records, at)
            kept.append(_decode(records[at + 4 : at + 4 + size]))
            at += 4 + size
        return (time.perf_counter() - begun) * 1e6
    finally:
        gc.enable()


def _figures(count: int, bare: list[Restart], found: list[Restart]) -> list[Figure]:
    nothing = sorted(restart.taken for restart in bare)[len(bare) // 2]
    records = [len(restart.journal) / count for restart in found]
    service = [(restart.service - bare[-1].service) / count for restart in found]
    keeper = [(restart.keeper - bare[-1].keeper) / count for restart in found]
    both = [ours + theirs for ours, theirs in zip(service, keeper, strict=True)]
    in_journal, part = "its record in the journal", f"a part of memory-{count}"
    return [
        figure_of(
            f"reclaim-{count}", [r.taken for r in found], [r.taken for r in bare],
            "a restart with nothing sealed", 4.0,
        ),
        figure_of(
            f"reclaim-{count}-each", [(r.taken - nothing) / count for r in found],
            [_decoded(r.journal) / count for r in found], "decoding its record", 20.0,
        ),
        figure_of(f"memory-{count}", both, [1024.0], "1 KiB", 1.0, "bytes"),
        figure_of(
            f"memory-{count}-service", service, records, in_journal, None, "bytes", part
        ),
        figure_of(f"memory-{count}-keeper", keeper, records, in_journal, None, "bytes", part),
        figure_of(
            f"memory-{count}-journal", records, [32.0 + 12.0], "its extent and its id",
            20.0, "bytes",
        ),
    ]  # fmt: skip
