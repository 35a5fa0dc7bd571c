"""Every write of a device is logged while files are copied, and replayed one by one.

At each point, after the file systems have recovered, what had been reported durable is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sealsvc.copies import Options, make_plan, run
from tests.copies.conftest import opened, pattern
from tests.copies.stacks import filled
from tests.copies.test_copy_faults import is_old_or_new
from tests.copies.test_lower import as_if_sealed
from tests.lab.copy_devices import formatted, loop_on, mounted, sh
from tests.lab.log_writes import DISCARD, Logged, entries, is_end, logged, replay

pytestmark = [pytest.mark.lab(pmem=768), pytest.mark.timeout(900)]

MiB = 1 << 20
PART, PARTS = 128 * 1024, 4
SIZE = PART * PARTS
DISK = {"xfs": 320 * MiB, "ext4": 64 * MiB}
LOG = Path("/dev/pmem0")  # as a block device

CASES = [("ext4", "plain"), ("xfs", "clone")]  # file system on the logged device, strategy


class Disk:
    """A file system of `kind` in an image; with `lower`, one of ext4 in an image on it."""

    def __init__(self, directory: Path, kind: str, lower: bool) -> None:
        self.kind, self.lower = kind, lower
        self.image = directory / "disk"
        self._below, self.above = directory / "below", directory / "above"
        for path in (self._below, self.above):
            path.mkdir()
        with self.image.open("xb") as file:
            file.truncate(DISK[kind])
        formatted(self.image, kind)
        if lower:
            with loop_on(self.image) as device, mounted(device, kind, self._below):
                upper = self._below / "image"
                with upper.open("xb") as file:
                    file.truncate(DISK["ext4"])
                formatted(upper, "ext4")

    @contextmanager
    def mounted(self, device: Path) -> Iterator[Path]:
        """What is to be looked at. The file systems recover first."""
        with ExitStack() as stack:
            if self.lower:
                stack.enter_context(mounted(device, self.kind, self._below))
                device = stack.enter_context(loop_on(self._below / "image"))
            kind = "ext4" if self.lower else self.kind
            yield stack.enter_context(mounted(device, kind, self.above))

    def replayed(self, log: Path, check: Callable[[Path, list[str]], None]) -> int:
        """`check` is called with the mounted state after each write, and the marks that were made
        before it. Returns the number of points."""
        base, now = self.image.with_name("base"), self.image.with_name("now")
        points, marks = 0, []
        with ExitStack() as stack:
            fds = [os.open(log, os.O_RDONLY), os.open(base, os.O_RDWR)]
            for fd in fds:
                stack.callback(os.close, fd)
            for entry in entries(fds[0]):
                if entry.mark:
                    if not is_end(entry):
                        marks.append(entry.mark)
                    continue
                assert not entry.flags & DISCARD
                if not entry.length:
                    continue
                replay(fds[0], entry, fds[1])
                sh("cp", "--sparse=always", base, now)
                with loop_on(now) as device, self.mounted(device) as point:
                    check(point, marks)
                points += 1
        return points


@contextmanager
def recorded(disk: Disk) -> Iterator[tuple[Logged, Path]]:
    """The disk, mounted over a log of everything that is written to it from now on."""
    sh("sync")
    sh("cp", "--sparse=always", disk.image, disk.image.with_name("base"))
    with (
        loop_on(disk.image) as device,
        logged(device, LOG) as log,
        disk.mounted(log.path) as point,
    ):
        yield log, point


@pytest.mark.parametrize(("kind", "strategy"), CASES)
def test_a_durable_copy_is_there_at_each_point_after_its_report(
    kind: str, strategy: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    disk = Disk(tmp_path, kind, strategy == "lower")
    new, old = pattern(SIZE), pattern(SIZE, seed=2)
    with loop_on(disk.image) as device, disk.mounted(device) as point:
        filled(point / "a", new)
        filled(point / "b", old)
    with recorded(disk) as (log, point):
        for number in range(PARTS):
            options = Options(offset=number * PART, length=PART, only=(strategy,), strict=True)
            with opened(point / "a", point / "b") as ends:
                held = as_if_sealed(ends) if strategy == "lower" else ends
                result = run(make_plan(held, options))
            assert result.whole, result.error
            assert result.durable
            log.mark(f"{(number + 1) * PART}")

    def check(point: Path, marks: list[str]) -> None:
        done = int(marks[-1]) if marks else 0
        found = (point / "b").read_bytes()
        assert (point / "a").read_bytes() == new
        assert found[:done] == new[:done], f"{done} bytes were reported"
        assert len(found) == SIZE
        assert is_old_or_new(found, old, new)
        seen.add(done)

    seen: set[int] = set()
    points = disk.replayed(LOG, check)
    assert points >= PARTS
    assert {0, SIZE} & seen, seen
    record_property(
        "fault",
        {
            "what": f"copy by {strategy}",
            "fault": "the power is cut after any write",
            "filesystem": "ext4 over xfs" if strategy == "lower" else kind,
            "reported": "whole, durable, part by part",
            "found": f"as reported, at each of {points} points",
        },
    )
