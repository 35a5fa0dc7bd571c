"""A device of which only the order of what is asked of it is kept: for the holder and its guard,
which are real, as the service and the file are. `python noted_device.py SPEC`."""

from __future__ import annotations

import os
import sys
from typing import Any, ClassVar

import msgspec

from sealsvc.exports import drivers
from sealsvc.exports.base import Map, Mapped, Spec
from sealsvc.exports.launch import run
from sealsvc.exports.runtime import Record, Runtime


class Noted(Mapped):
    """Notes are lines of NAME.notes; `hold` takes as long as the option says."""

    type: ClassVar[str] = "noted"
    summary: ClassVar[str] = "for tests"

    def check(self) -> None:
        pass

    def note(self, what: str) -> None:
        with (self.runtime.directory / f"{self.spec.name}.notes").open("a") as notes:
            notes.write(f"{what}\n")

    @property
    def left(self) -> dict[str, Any]:
        return {}

    def remember(self, record: Record) -> None:
        self.note("remember")

    def create(self, fd: int, map: Map, recover: bool) -> None:
        self.device = "/dev/null"
        self.note(f"create {map[0][1]}")

    def recall(self) -> None:
        self.note("recall")

    def resume(self, map: Map) -> None:
        self.note(f"resume {map[0][1]}")

    def hold(self) -> None:
        self.note(f"hold {os.path.getsize(self.spec.file)}")

    def fence(self) -> None:
        self.note("fence")

    def ready(self, record: Record) -> str:
        return record.device

    def delete(self, record: Record) -> None:
        self.note("delete")


def main() -> int:
    drivers.DRIVERS = (*drivers.DRIVERS, Noted)
    spec = msgspec.json.decode(sys.argv[1], type=Spec)
    return run(spec, Runtime(), recover="--recover" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
