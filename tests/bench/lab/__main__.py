"""Boot the lab and measure there: `python -m tests.bench.lab [NAME…]`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.lab import DEFAULT, LabError, run, unavailable

ROOT = Path(__file__).parents[3]
NAMES = ("peer", "overhead", "validation")


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev bench-lab", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench-lab.jsonl"))
    options = parser.parse_args()
    if reason := unavailable(DEFAULT):
        print(f"lab: {reason}", file=sys.stderr)
        return 77
    with tempfile.TemporaryDirectory(prefix="sealsvc-bench-") as directory:
        share = Path(directory)
        for source in (ROOT / "tests/bench/floors.c", ROOT / "tests/bench/lab/holder.c"):
            command = ["gcc", "-O2", "-o", share / source.stem, source, "-lpthread"]
            subprocess.run(command, check=True)
        inside = [sys.executable, "-m", "tests.bench.lab.inside", "--rounds", str(options.rounds)]
        names = options.names or NAMES
        try:
            done = run([*inside, *names], share=share, timeout=900, echo=True)
        except LabError as error:
            print(f"lab: {error}", file=sys.stderr)
            return 125
        figures = share / "figures"
        lines = figures.read_text().splitlines() if figures.exists() else []
    options.out.write_text("".join(f"{json.dumps(json.loads(line))}\n" for line in lines))
    return done.status


if __name__ == "__main__":
    sys.exit(main())
