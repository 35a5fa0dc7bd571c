"""ublk: /dev/ublkbN, served by sealsvc-ublk (native/exports/ublk)."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from sealsvc.core.errors import Refusal
from sealsvc.exports.base import Served
from sealsvc.exports.programs import is_claimed, program
from sealsvc.exports.runtime import Record
from sealsvc.exports.stats import read_stats

_PROGRAM = "sealsvc-ublk"
_DELETE_SECONDS = 60


class Ublk(Served):
    type: ClassVar[str] = "ublk"
    summary: ClassVar[str] = "block device by io_uring (Linux 6.6, ublk_drv)"
    options: ClassVar[dict[str, str]] = {
        "queues": "hardware queues, each with a thread (1; at most one for each processor)",
        "depth": "requests at a time of each queue (64)",
        "threads": "threads that do the I/O; from persistent memory the queues' own do it (8)",
    }
    # ublk_drv sets no time-out for a request; after this the kernel complains of whoever waits.
    initiator_timeout: ClassVar[float] = 120.0
    initiator: ClassVar[str] = "the kernel's hung task warning (120 s)"

    @classmethod
    def missing(cls) -> str:
        if not program(_PROGRAM):
            return f"{_PROGRAM} is not installed"
        if not Path("/dev/ublk-control").exists():
            return "there is no /dev/ublk-control (modprobe ublk_drv; Linux 6.6)"
        return ""

    def check(self) -> None:
        for option, most in (("queues", 4096), ("depth", 4096), ("threads", 1024)):
            value = self.spec.options.get(option, "1")
            if not (value.isdecimal() and 0 < int(value) <= most):
                raise Refusal("bad-request", f"{option}={value}: a number from 1 to {most}")

    @property
    def _id_file(self) -> Path:
        return self.runtime.directory / f"{self.spec.name}.ublk"

    def _served(self) -> tuple[int, int] | None:
        """The device's number, and the process that began to serve it last; None before that."""
        try:
            number, pid = self._id_file.read_text().split()
        except FileNotFoundError:
            return None
        return int(number), int(pid)

    def program(self, recover: bool) -> tuple[list[str], dict[str, str]]:
        command = [program(_PROGRAM), "--id-file", os.fspath(self._id_file)]
        for option, value in self.spec.options.items():
            command += [f"--{option}", value]
        if recover and (served := self._served()) is not None:
            command += ["--recover", str(served[0])]
        return command, self.core_environment()

    def ready(self, record: Record) -> str:
        stats = read_stats(self.runtime.stats(self.spec.name))
        if stats is None or stats.pid != record.pid or stats.state == "starting":
            return ""
        served = self._served()
        return f"/dev/ublkb{served[0]}" if served is not None and served[1] == record.pid else ""

    def delete(self, record: Record) -> None:  # noqa: ARG002
        """A process that was told to stop has removed its device; one that was killed has not."""
        served = self._served()
        if served is not None and Path(f"/dev/ublkc{served[0]}").exists():
            done = subprocess.run(
                [program(_PROGRAM), "--delete", str(served[0])],
                capture_output=True, text=True, check=False, timeout=_DELETE_SECONDS,
            )  # fmt: skip
            if done.returncode:
                raise Refusal("export-failed", done.stderr.strip())
        with suppress(FileNotFoundError):
            self._id_file.unlink()

    def status(self, record: Record) -> dict[str, Any]:  # noqa: ARG002
        served = self._served()
        return {} if served is None else {"number": served[0]}

    def in_use(self, record: Record) -> str:
        return is_claimed(record.device) if record.device else ""
