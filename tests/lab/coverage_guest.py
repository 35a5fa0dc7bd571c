"""What tests.lab.coverage runs in the guest: the doctor, by jobs, telling each row at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import groupby
from pathlib import Path
from typing import IO

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.doctor.actor import SubjectLost
from sealsvc.doctor.report import Row, measure
from sealsvc.doctor.unsealed import Unsealed
from tests.lab.pmem import mounted_dax
from tests.operations import coverage
from tests.operations.coverage import SETUPS

_PROBE = "pread"  # measured first: the enforcers of its seal are those that the kernel has

_PATIENCE = 5.0  # how many times longer than elsewhere an operation may take in the guest


class Job(msgspec.Struct):
    """The rows to measure on a file system with a set-up."""

    filesystem: str
    setup: str
    rows: list[str]


class Line(msgspec.Struct):
    """One row, as it is told. Without `row`: the kernel cannot have the set-up, and the note says
    why. `seconds`: since the line before."""

    filesystem: str
    setup: str
    row: str
    word: str
    note: str
    seconds: float


class NotThere(Exception):
    """The seal is refused, or other enforcers keep it than those of the set-up."""


class Teller:
    """Writes lines to the host's file, and what is unusual to the console. `patience` is that of
    the measurement."""

    def __init__(self, out: IO[bytes], patience: float) -> None:
        self._out = out
        self.patience = patience
        self._last = time.monotonic()

    def tell(self, job: Job, row: str, word: str, note: str) -> None:
        now = time.monotonic()
        line = Line(job.filesystem, job.setup, row, word, note, round(now - self._last, 2))
        self._last = now
        self._out.write(msgspec.json.encode(line) + b"\n")
        if note:
            print(f"  {job.filesystem} {job.setup} {row}: {word} {note}", flush=True)


def main() -> None:
    # A row takes long here: a lease must not end by itself meanwhile.
    Path("/proc/sys/fs/lease-break-time").write_text("600")
    share = Path(os.environ["SEALSVC_LAB_SHARE"])
    jobs = msgspec.json.decode((share / "jobs").read_bytes(), type=list[Job])
    with (share / "rows").open("ab", buffering=0) as out:
        measure_jobs(jobs, out, _on_pmem, _PATIENCE)


def _on_pmem(filesystem: str, dax: bool) -> AbstractContextManager[Path]:
    options = "dax=always" if dax else "dax=never"
    return mounted_dax(filesystem, reflink=True, options=options, exchange=filesystem == "xfs")


def measure_jobs(
    jobs: Iterable[Job],
    out: IO[bytes],
    mounted: Callable[[str, bool], AbstractContextManager[Path]],
    patience: float = 1.0,
) -> None:
    """Tell `out` lines of JSON. `mounted(filesystem, dax)` makes a new file system; `patience` is
    the doctor's."""
    teller = Teller(out, patience)
    for place, group in groupby(jobs, lambda job: (job.filesystem, SETUPS[job.setup].dax)):
        with mounted(*place) as root:
            unsealed = Unsealed()
            for job in group:
                _run(job, str(root), unsealed, teller)


def _run(job: Job, root: str, unsealed: Unsealed, teller: Teller) -> None:
    """A row that the doctor itself fails at is told as not measured, and those behind it go on."""
    began = time.monotonic()
    left = sorted(job.rows, key=lambda row: row != _PROBE)
    while left:
        try:
            _measure(job, left, root, unsealed, teller)
        except NotThere as reason:
            teller.tell(job, "", "", str(reason))
            break
        except (OSError, Refusal, SubjectLost) as error:
            if not left:
                raise
            teller.tell(job, left.pop(0), "?", repr(error))
    took = time.monotonic() - began
    print(f"{job.filesystem} {job.setup}: {len(job.rows)} rows, {took:.0f} s", flush=True)


def _measure(job: Job, left: list[str], root: str, unsealed: Unsealed, teller: Teller) -> None:
    """Takes what was told out of `left`."""
    setup = SETUPS[job.setup]

    def told(row: Row) -> None:
        if row.operation == _PROBE and row.enforcer != setup.name:
            raise NotThere(row.note or f"kept by {row.enforcer}")
        if row.operation in left:
            left.remove(row.operation)
            teller.tell(job, row.operation, coverage.word_of(row), coverage.note_of(row))

    measure(
        root,
        enforcers=setup.use,
        kinds=[setup.kind],
        conflicts=[setup.conflict],
        operations=dict.fromkeys([_PROBE, *left]),
        progress=told,
        unsealed=unsealed,
        patience=teller.patience,
    )


if __name__ == "__main__":
    main()
