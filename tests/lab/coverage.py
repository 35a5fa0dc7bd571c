"""Measure what docs/coverage.md says: `python -m tests.lab.coverage [SERIES...]`.

A guest of each series boots once. There the doctor runs on XFS and on ext4, by each set-up of
enforcers that the service would choose on that kernel. What was measured is written to
docs/coverage/SERIES.json as soon as the guest ends, also when it died, and the page made anew.
`--here` measures the kernel of this machine, without a guest.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.lab import LabError, Unavailable, kernels, run
from tests.lab.coverage_guest import Job, Line, measure_jobs
from tests.operations import coverage, coverage_page
from tests.operations.coverage import FILESYSTEMS, SERIES, SETUPS, Measured, Snapshot
from tests.support.scratch import MiB, mounted

_SECONDS = 5400.0  # for one kernel, on a busy machine; some 8 minutes where nothing else runs
_SIZE = 768 * MiB


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.coverage", description=__doc__)
    parser.add_argument("series", nargs="*", help=f"kernels ({', '.join(SERIES)})")
    parser.add_argument(
        "--setup", action="append", choices=SETUPS,
        help="only this one, also where the service would not choose it",
    )  # fmt: skip
    parser.add_argument(
        "--missing", action="store_true", help="only rows that the snapshot does not have"
    )
    parser.add_argument(
        "--here", action="store_true", help="this machine's kernel, on loop devices, without DAX"
    )
    parser.add_argument("--row", action="append", help="only this row of the doctor")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    failed = 0
    measured = _here if asked.here else _in_guest
    for series in [os.uname().release] if asked.here else asked.series or SERIES:
        snapshot = coverage.load(series)
        jobs = list(_jobs(series, snapshot, asked))
        if not jobs:
            continue
        began = time.monotonic()
        try:
            measured(series, snapshot, jobs)
        except (Unavailable, LabError) as reason:
            print(f"{series}: not all was measured: {reason}", file=sys.stderr)
            failed = 1
        finally:
            coverage.save(series, snapshot)
            coverage_page.main()
        print(f"{series}: {time.monotonic() - began:.0f} s")
    return failed


def _jobs(series: str, snapshot: Snapshot, asked: argparse.Namespace) -> Iterator[Job]:
    for filesystem in FILESYSTEMS:
        for name, setup in SETUPS.items():
            if name not in asked.setup if asked.setup else not setup.chosen_on(series):
                continue
            if asked.here and setup.dax:
                continue
            rows = coverage.rows_of(filesystem)
            if asked.missing:
                rows = snapshot.missing(name, filesystem)
            rows = [row for row in rows if not asked.row or row in asked.row]
            if rows:
                yield Job(filesystem, name, rows)


def _in_guest(series: str, snapshot: Snapshot, jobs: list[Job]) -> None:
    """What was told before the guest died is kept. Raises LabError and Unavailable."""
    with tempfile.TemporaryDirectory(prefix="coverage-") as directory:
        share = Path(directory)
        (share / "jobs").write_bytes(msgspec.json.encode(jobs))
        rows = share / "rows"
        rows.touch()
        try:
            command = [sys.executable, "-m", "tests.lab.coverage_guest"]
            done = run(
                command,
                series,
                timeout=_SECONDS,
                share=share,
                echo=True,
            )
            if done.status:
                raise LabError(f"the measurement ended with status {done.status}")
        finally:
            _take_in(snapshot, kernels.kernel(series).release, jobs, rows.read_bytes())


def _here(release: str, snapshot: Snapshot, jobs: list[Job]) -> None:
    with tempfile.TemporaryFile(buffering=0) as out:
        try:
            measure_jobs(jobs, out, lambda filesystem, dax: mounted(filesystem, _SIZE))
        finally:
            out.seek(0)
            _take_in(snapshot, release, jobs, out.read())


def _take_in(snapshot: Snapshot, release: str, jobs: list[Job], lines: bytes) -> None:
    """A set-up of which something was told is in the snapshot with all rows of its job."""
    found = dict[tuple[str, str], Measured]()
    for text in lines.split(b"\n")[:-1]:
        line = msgspec.json.decode(text, type=Line)
        if not line.row:
            snapshot.unavailable[line.setup] = line.note
            continue
        place = line.setup, line.filesystem
        new = found.setdefault(place, Measured(release, time.strftime("%Y-%m-%d")))
        new.add(line.row, line.word, line.note)
        new.seconds += line.seconds
    for job in jobs:
        if (new := found.get((job.setup, job.filesystem))) is not None:
            for row in set(job.rows) - new.rows.keys():
                new.add(row, "?", "the measurement was ended before it")
            snapshot.keep(job.setup, job.filesystem, new)


if __name__ == "__main__":
    sys.exit(main())
