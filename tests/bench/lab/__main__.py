"""Boot the lab and measure there: `python -m tests.bench.lab [NAME…]`; part of `./dev bench`.

Exits with 1 when a goal is missed, with 2 when not everything could be measured, with 77 where
there is no lab."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.outcome import Outcome
from tests.bench.rings import BUILT, LIBSEAL
from tests.lab import DEFAULT, LabError, run, unavailable
from tests.lab.qemu import MACHINE

ROOT = Path(__file__).parents[3]
NAMES = ("peer", "overhead", "validation", "export", "ublk")
# Who serves and who asks have a processor each.
TWO_PROCESSORS = {"ublk"}
_TOLD = ("SEALSVC_TEST_PATIENCE",)  # to the guest
_SECONDS = 1800.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.lab", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench-lab.jsonl"))
    options = parser.parse_args()
    if reason := unavailable(DEFAULT):
        print(f"lab: {reason}", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as directory:
        share = Path(directory)
        for name in ("floors.c", "lab/holder.c", "lab/ring_holder.c"):
            source = ROOT / "tests/bench" / name
            built = ["gcc", "-O2", f"-I{LIBSEAL}", "-o", share / source.stem, source]
            subprocess.run([*built, "-lpthread", BUILT], check=True)
        inside = [sys.executable, "-m", "tests.bench.lab.inside", "--rounds", str(options.rounds)]
        names = options.names or NAMES
        told = {name: os.environ[name] for name in _TOLD if name in os.environ}
        status = 0
        for cpus in (1, 2):
            some = [name for name in names if (name in TWO_PROCESSORS) == (cpus == 2)]
            if not some:
                continue
            machine = dataclasses.replace(MACHINE, cpus=cpus)
            try:
                done = run(
                    [*inside, *some],
                    share=share,
                    timeout=_SECONDS,
                    echo=True,
                    machine=machine,
                    environment=told,
                )
            except LabError as error:
                print(f"lab: {error}", file=sys.stderr)
                status = 2
            else:
                status = status or done.status
        with options.out.open("w") as out:
            outcome = Outcome(out)
            outcome.read(share / "figures")
    print(outcome.summary())
    return 2 if status else outcome.status


if __name__ == "__main__":
    sys.exit(main())
