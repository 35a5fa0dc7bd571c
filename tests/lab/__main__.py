"""Run a command in the lab: `python -m tests.lab [OPTIONS] -- COMMAND…`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.lab import DEFAULT, LabError, run, unavailable

MiB = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev lab", description=__doc__)
    parser.add_argument("--kernel", default=DEFAULT, help=f"series of the kernel ({DEFAULT})")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for COMMAND (600)")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory", type=int, default=3072, help="MiB (3072)")
    parser.add_argument("--pmem", type=int, default=1024, help="MiB of persistent memory (1024)")
    parser.add_argument("--share", type=Path, help="a directory that the guest may write")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args()
    if reason := unavailable(options.kernel):
        print(f"lab: {reason}", file=sys.stderr)
        return 77
    try:
        done = run(
            options.command,
            options.kernel,
            timeout=options.timeout,
            cpus=options.cpus,
            memory=options.memory * MiB,
            pmem=options.pmem * MiB,
            share=options.share,
            echo=True,
        )
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 125
    return done.status


if __name__ == "__main__":
    sys.exit(main())
