"""python -m tests.hostile --minutes 10: the neighbours' latencies under attack, judged."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.hostile.neighbours import measured
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running

MOST, FACTOR = 1.0, 3.0  # seconds, and times what it takes without the attack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    seconds = parser.parse_args().minutes * 60
    with mounted("xfs") as root, tempfile.TemporaryDirectory() as directory:
        root.chmod(0o777)
        Path(directory).chmod(0o755)
        running = Running(Path(directory), [root], RISKS)
        running.start()
        try:
            running.ready()
            point = Path(directory) / "fuse"
            found = measured(running, root, point, max(5.0, seconds / 10), seconds, 60)
        finally:
            running.end()
    print(found.table())
    wrong = [*found.attacked.failures, *found.losses()]
    for name in found.quiet.times:
        quiet, attacked = found.quiet.worst(name), found.attacked.worst(name)
        if attacked > max(FACTOR * quiet, 0.05) or attacked > MOST:
            wrong.append(f"{name}: p99 {attacked:.3f} s under attack, {quiet:.3f} s without")
    print("\n".join(wrong) or "nobody else noticed")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
