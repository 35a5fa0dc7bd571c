"""`python -m tests.integrity.soak --minutes 10`: the test for false alarms, for so long.

Writers, recalls, partial returns, scrubs and verifications on an XFS of its own, and a kill of the
service every 20 seconds. It ends with 0 when nothing was called corrupt or changed; blocks that a
kill left in the middle may be suspect. It prints its seed and what was done."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import pytest

TEST = Path(__file__).with_name("test_no_false_alarm.py")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integrity.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    os.environ["SEALSVC_SOAK"] = str(60 * minutes)  # read when the test is imported
    return int(pytest.main([str(TEST), "-q", "-s"]))


if __name__ == "__main__":
    sys.exit(main())
