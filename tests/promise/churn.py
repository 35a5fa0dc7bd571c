"""`python -m tests.promise.churn`: short seals among neighbours who clone, write and truncate."""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.promise.attack import BLOCK, EPOCH_OPS, FILE_BYTES, Attack, program
from tests.promise.layout import Plan
from tests.promise.run import Epoch, Place, open_all, place
from tests.promise.seals import Broken

# What an ordinary user does to files that others seal.
KINDS = (
    *("write", "write_flags", "truncate", "fallocate", "store", "copy_range", "clone", "dedupe"),
    *("aio", "uring", "sync"),
)
FILES = 5
LONGEST = 0.02  # seconds that a seal is held


def churn(where: Place, seed: int, seals: int, seconds: float) -> Counter[str]:
    """Counts, with "broken" and "granted" among them; each broken one is told at once."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    with Attack(seed, where.fs, 3, 0) as attack:
        attack.leave_out(sorted(set(program()[1]) - set(KINDS)))
        epoch = 0
        while counts["granted"] < seals and time.monotonic() < deadline:
            epoch += 1
            first = epoch * EPOCH_OPS
            made = Epoch(where, epoch, [], str(seed))
            try:
                open_all(attack, epoch, first, made)
                attack.advance(first + EPOCH_OPS)
                while not attack.done and counts["granted"] < seals:
                    _one(made, _plan(chance), chance, counts)
                    if not attack.alive or time.monotonic() >= deadline:
                        break
            finally:
                attack.end()
                made.close()
        counts += Counter({n: c for n, c in attack.counts().items() if n.endswith(": ok")})
    return counts


def _plan(chance: random.Random) -> Plan:
    start = chance.randrange(FILE_BYTES // BLOCK // 2) * BLOCK
    length = chance.randrange(1, 64) * BLOCK
    by = chance.choice(["path", "descriptor"])
    return Plan(chance.randrange(FILES), start, length, "shared", "wait", by)


def _one(made: Epoch, plan: Plan, chance: random.Random, counts: Counter[str]) -> None:
    try:
        made.seal(plan)
        held = made.held.pop(plan.file, None)
        if held is None:
            counts["not granted"] += 1
            return
        counts["granted"] += 1
        try:
            time.sleep(chance.random() * LONGEST)
            held.check(4)
        finally:
            held.give_back()
    except Broken as broken:
        counts["broken"] += 1
        print(f"broken: {plan}: {broken}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.promise.churn", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--seals", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=1800, help="at most so long")
    parser.add_argument("--fs", choices=["xfs", "ext4"], default="xfs")
    parser.add_argument("--reflink", type=int, choices=[0, 1], default=1)
    chosen = parser.parse_args()
    began = time.monotonic()
    print(f"churn: --seed {chosen.seed}", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix="sealsvc-promise-") as directory,
        place(chosen.fs, chosen.reflink, Path(directory, "run")) as where,
    ):
        counts = churn(where, chosen.seed, chosen.seals, chosen.seconds)
    for name, count in sorted(counts.items()):
        print(f"  {count:10}  {name}")
    print(
        f"{counts['broken']} of {counts['granted']} seals broken, {time.monotonic() - began:.0f} s"
    )
    return 1 if counts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
