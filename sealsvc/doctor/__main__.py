"""The doctor as a child of the service: `python -m sealsvc.doctor PATH ENFORCER,...` measures with
a private service and prints a JSON line for each row, after one that tells how many there will
be."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.doctor.report import expected_rows, measure
from sealsvc.runtime import priority
from sealsvc.runtime.orphaned import end_with_reader


def _tell(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def _end(number: int, _frame: FrameType | None) -> None:
    """Through every context that was entered: what was started and made goes with us."""
    sys.exit(128 + number)


def main() -> int:
    path, enforcers = sys.argv[1:]
    signal.signal(signal.SIGTERM, _end)
    priority.be_usual()
    end_with_reader(sys.stdout.fileno())
    try:
        _tell({"total": expected_rows(path)})
        measure(path, enforcers=enforcers.split(","), progress=_tell)
    except (Refusal, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
