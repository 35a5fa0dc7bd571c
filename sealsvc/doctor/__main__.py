"""The doctor as a child of the service: `python -m sealsvc.doctor PATH SOCKET` prints a JSON line
for each row that it measures, after one that tells how many there will be."""

from __future__ import annotations

import sys

import msgspec

from sealsvc.doctor.report import expected_rows, measure
from sealsvc.errors import Refusal


def _tell(value: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
    sys.stdout.buffer.flush()


def main() -> int:
    path, socket = sys.argv[1:]
    try:
        _tell({"total": expected_rows(path)})
        measure(path, socket=socket, progress=_tell)
    except (Refusal, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
