"""`python -m tests.soak`: everything at random for some minutes, and a report."""

from __future__ import annotations

import argparse
import secrets
import signal
import sys
import time
from types import FrameType

from tests.soak.run import Result, soak

ROOM = 600  # seconds beside the run itself: file systems, warming up, winding down


def report(result: Result, took: float) -> None:
    for name, count in sorted(result.counts.items()):
        print(f"  {count:10}  {name}")
    for title, lines in (
        ("drift", result.drift),
        ("leaks", result.leaks),
        ("trouble", result.trouble),
    ):
        for line in lines[:40]:
            print(f"{title}: {line}")
    seen = result.observer
    print(
        f"seed {result.seed}: {took:.0f} s, {seen.get('seals', 0)} seals watched,"
        f" {seen.get('reads', 0)} maps compared"
    )
    print(
        f"drift = {len(result.drift)}, leaks = {len(result.leaks)}, trouble = {len(result.trouble)}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 32))
    chosen = parser.parse_args()
    seconds = chosen.minutes * 60

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(f"soak: ended by {signal.Signals(number).name}")

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    signal.alarm(int(seconds) + ROOM)
    print(f"soak: {seconds:.0f} s with --seed {chosen.seed}", flush=True)
    began = time.monotonic()
    result = soak(chosen.seed, seconds)
    report(result, time.monotonic() - began)
    watched = result.observer.get("reads", 0)
    return 0 if result.good and watched else 1


if __name__ == "__main__":
    sys.exit(main())
