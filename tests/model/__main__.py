"""`python -m tests.model`: the model beside the real thing, from a seed; a difference is shrunk."""

from __future__ import annotations

import argparse
import itertools
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.model.mutants import MUTATIONS
from tests.model.operations import Generator, read_log, write_log
from tests.model.run import Run
from tests.model.shrinking import replay, shrink
from tests.model.system import Difference, System, system
from tests.support.service import preload, unload

ROUND = 20_000  # operations on the same files: a list that is to be shrunk is not longer


def main() -> int:
    preload()  # a long run starts some hundred services
    try:
        return _compare(_parse())
    finally:
        unload()


def _compare(chosen: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="sealsvc-model-") as directory:
        if chosen.replay:
            head, operations = read_log(chosen.replay)
            chosen.filesystem, chosen.reflink = str(head["filesystem"]), bool(head["reflink"])
            mutation = chosen.mutation or str(head["mutation"])
            with system(chosen.filesystem, chosen.reflink, Path(directory), mutation) as real:
                found = replay(real, chosen.reflink, operations)
            print(f"DIFFERENCE: {found}" if found else "no difference")
            return 1 if found else 0
        chosen.reflink = chosen.filesystem == "xfs" and not chosen.no_reflink
        with system(chosen.filesystem, chosen.reflink, Path(directory), chosen.mutation) as real:
            return _run(chosen, real)


def _run(chosen: argparse.Namespace, real: System) -> int:
    what = f"{chosen.filesystem} reflink={int(chosen.reflink)}"
    print(f"model: {what} --seed {chosen.seed}", flush=True)
    counts: Counter[str] = Counter()
    began, done, at_end = time.monotonic(), 0, chosen.seconds or 1e9
    for round in itertools.count(chosen.first_round):
        left = chosen.operations - done
        if left <= 0 or time.monotonic() - began > at_end:
            break
        run = Run(real, chosen.reflink)
        generator = Generator(f"{chosen.seed} {round}", chosen.reflink)
        makes = itertools.islice(iter(generator.next, None), min(left, ROUND))
        made = itertools.takewhile(lambda _: time.monotonic() - began < at_end, makes)
        try:
            run.run(made)
        except Difference as difference:
            where = f"round {round}, operation {len(run.done)}"
            print(f"DIFFERENCE in {where}: {difference}", flush=True)
            _tell(chosen, real, run, str(difference))
            return 1
        done += len(run.done)
        counts += run.counts
        print(
            f"round {round}: {done} operations after {time.monotonic() - began:.0f} s", flush=True
        )
    took = time.monotonic() - began
    for name, count in sorted(counts.items()):
        print(f"  {count:10}  {name}")
    print(f"seed {chosen.seed}: {done} operations in {took:.0f} s without a difference", flush=True)
    return 0


def _tell(chosen: argparse.Namespace, real: System, run: Run, what: str) -> None:
    operations = run.done
    if not chosen.no_shrink:
        operations, what = shrink(real, chosen.reflink, operations, what)
        print(f"shrunk to {len(operations)} operations: {what}")
    for operation in operations[-60:]:
        print(f"  {operation}")
    if chosen.log:
        head = {
            "filesystem": chosen.filesystem, "reflink": chosen.reflink, "seed": chosen.seed,
            "mutation": chosen.mutation, "what": what,
        }  # fmt: skip
        write_log(chosen.log, head, operations)
        print(f"written to {chosen.log}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--filesystem", choices=["xfs", "ext4"], default="xfs")
    parser.add_argument("--no-reflink", action="store_true", help="of XFS")
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=0, help="at most so long (0: no limit)")
    parser.add_argument("--first-round", type=int, default=0, help=f"of {ROUND} operations each")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--mutation", choices=list(MUTATIONS), default="", help="a fault to find")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--log", type=Path, help="write the operations of a difference here")
    parser.add_argument("--replay", type=Path, help="run the operations of such a log")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
