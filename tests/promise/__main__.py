"""`python -m tests.promise`: operations from a seed against sealed files; a violation is shrunk."""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.promise.attack import program
from tests.promise.replay import read, replay, shrink, write
from tests.promise.run import Fuzz, Violation, place


def main() -> int:
    chosen = _parse()
    with tempfile.TemporaryDirectory(prefix="sealsvc-promise-") as directory:
        if chosen.replay:
            return _replay(chosen.replay, Path(directory))
        seed, began = chosen.seed, time.monotonic()
        print(f"promise: {chosen.fs} reflink={chosen.reflink} --seed {seed}", flush=True)
        with place(chosen.fs, chosen.reflink, Path(directory, "run"), chosen.pmem) as where:
            without = chosen.without.split(",") if chosen.without else []
            if chosen.only:
                without += set(program()[1]) - set(chosen.only.split(","))
            fuzz = Fuzz(where, seed, chosen.workers, chosen.privileged, without)
            fuzz.run(chosen.ops, chosen.seconds or 1e9, chosen.violations)
        took = time.monotonic() - began
        _tell(fuzz, took)
        for n, violation in enumerate(fuzz.violations):
            found = violation
            print(f"violation in epoch {violation.epoch}: {violation.what}", flush=True)
            if not chosen.no_shrink:
                apart = Path(directory, f"shrink{n}")
                with place(chosen.fs, chosen.reflink, apart, chosen.pmem) as where:
                    found = shrink(where, violation)
            _show(found, Path(chosen.log) if chosen.log else None)
    return 1 if fuzz.violations else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.promise", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    parser.add_argument("--ops", type=int, default=100_000, help="operations, of all workers")
    parser.add_argument("--seconds", type=float, default=0, help="at most so long (0: no limit)")
    parser.add_argument("--fs", choices=["xfs", "ext4"], default="xfs")
    parser.add_argument("--reflink", type=int, choices=[0, 1], default=1, help="of XFS")
    parser.add_argument("--pmem", default="", help="with DAX on this device, which is overwritten")
    parser.add_argument("--workers", type=int, default=3, help="attacking processes (3)")
    parser.add_argument(
        "--privileged", type=lambda text: int(text, 0), default=0b100,
        help="bit mask of the workers that are root; the others are nobody (0b100)",
    )  # fmt: skip
    parser.add_argument("--without", help="kinds of operations that are left out: a,b")
    parser.add_argument("--only", help="kinds of operations, and no others")
    parser.add_argument("--violations", type=int, default=1, help="stop after so many (1)")
    parser.add_argument("--no-shrink", action="store_true")
    parser.add_argument("--log", help="write the list of a violation here as well")
    parser.add_argument("--replay", type=Path, help="do what such a list says")
    return parser.parse_args()


def _tell(fuzz: Fuzz, took: float) -> None:
    for name, count in sorted(fuzz.counts.items()):
        if count:
            print(f"  {count:10}  {name}")
    print(
        f"seed {fuzz.seed}: {fuzz.operations} operations in {took:.0f} s,"
        f" {fuzz.counts['checks']} checks of seals, {len(fuzz.violations)} violations",
        flush=True,
    )


def _show(violation: Violation, log: Path | None) -> None:
    print(f"VIOLATION: {violation.what}\n{len(violation.records)} operations:")
    for record in violation.records[:60]:
        print(f"  {record}")
    if log:
        write(log, violation)
        print(f"written to {log}")


def _replay(path: Path, directory: Path) -> int:
    violation = read(path)
    with place(violation.fs, violation.reflink, directory / "run") as where:
        found = replay(where, violation.plans, violation.records, violation.seed)
    print(f"VIOLATION: {found}" if found else "nothing moved")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
