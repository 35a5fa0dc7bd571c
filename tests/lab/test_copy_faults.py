"""Devices that fail in the middle of a copy.

What was reported done is on the device, each other sector is old or new. What each case
reported is the table of docs/copies.md (`python -m tests.lab.fault_table`)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sealsvc.copies import Options, Result, make_plan, run
from sealsvc.copies.result import parse_token
from sealsvc.core.model import ByteRange
from tests.copies.conftest import opened, pattern
from tests.copies.stacks import filled
from tests.copies.test_copy_faults import is_old_or_new
from tests.copies.test_lower import as_if_sealed
from tests.lab.copy_devices import Failing, formatted, loop_on, mounted, nvme_device, scsi_disk, sh

pytestmark = [
    pytest.mark.lab(nvme=("mssrl=128,mcl=512,msrc=3",), pmem=512),
    pytest.mark.timeout(600),
]

MiB = 1 << 20
SIZE = 4 * MiB  # of the copy that the fault meets
BEFORE = MiB  # bytes that are copied, and reported durable, before it

FAULTS = ("writes fail", "reads fail", "the device is gone")
KILL = "kill -9 of the copy"
# Strategy -> the file system that it copies on, and what its device is when nothing is wrong.
PLACES = {
    "clone": ("xfs", "flakey"),
    "range": ("ext4", "flakey"),
    "direct": ("xfs", "flakey"),
    "plain": ("ext4", "flakey"),
    "lower": ("ext4", "flakey"),
    "nvme": ("ext4", "linear"),
    "xcopy": ("ext4", "linear"),
    "dax": ("xfs", "linear"),
}
# A device that was for DAX becomes one of errors, and none of dm-flakey's.
LEFT_OUT = {("dax", "writes fail"), ("dax", "reads fail")}
OFFLOADS = ("lower", "nvme", "xcopy", "dax")


@dataclass
class Place:
    """A file system on a device that fails when it is told to."""

    strategy: str
    directory: Path
    device: Failing = field(init=False)
    point: Path = field(init=False)
    _mounts: ExitStack = field(default_factory=ExitStack)

    @contextmanager
    def made(self) -> Iterator[Place]:
        self.point, below = self.directory / self.strategy, self.directory / "below"
        for path in (self.point, below):
            path.mkdir(exist_ok=True)
        self._below = below
        with ExitStack() as stack:
            device = Path("/dev/pmem0")
            if self.strategy == "nvme":
                device = nvme_device()
            elif self.strategy == "xcopy":
                device = stack.enter_context(scsi_disk())
            self.device = Failing(device, PLACES[self.strategy][1])
            self.device.create()
            stack.callback(self.device.remove)
            formatted(self.device.path, "xfs" if self.strategy == "lower" else self.kind)
            if self.strategy == "lower":
                with mounted(self.device.path, "xfs", below), (below / "image").open("wb") as image:
                    image.truncate(128 * MiB)
                    formatted(image.name, self.kind)
            stack.callback(self.down)
            self.up()
            yield self

    @property
    def kind(self) -> str:
        return PLACES[self.strategy][0]

    def up(self) -> None:
        device = self.device.path
        if self.strategy == "lower":
            self._mounts.enter_context(mounted(device, "xfs", self._below))
            device = self._mounts.enter_context(loop_on(self._below / "image"))
        options = "dax=always" if self.strategy == "dax" else "defaults"
        self._mounts.enter_context(mounted(device, self.kind, self.point, options))

    def down(self) -> None:
        self._mounts.close()

    def again(self) -> None:
        """Repair the device and mount the file systems again: they recover from their logs."""
        self.down()
        self.device.heal()
        self.up()


@dataclass(frozen=True)
class Told:
    """What a copy reported; `result` None: it was killed."""

    result: Result | None
    ranges: tuple[ByteRange, ...]

    @property
    def words(self) -> str:
        if self.result is None:
            return "nothing: it is dead"
        said = "whole" if self.result.whole else os.strerror(self.result.errno)
        durable = "durable" if self.result.durable else "not durable"
        size = sum(part.length for part in self.ranges) // 1024
        return f"{said}, {durable}, {size} of {SIZE // 1024} KiB"


def copy(place: Place, fault: str) -> Told:
    """From the end of what was copied before. The fault comes when a quarter is done; nobody else
    is here, which stands for the seals."""
    a, b = place.point / "a", place.point / "b"

    def fail(done: int, _all: int, _name: str) -> None:
        if done >= SIZE // 4 and not failed:
            place.device.fail(fault)
            failed.append(done)

    failed: list[int] = []

    with opened(a, b) as ends:
        held = as_if_sealed(ends) if place.strategy in OFFLOADS else ends
        # Eight calls, or more, a second: so much less is copied by each of them.
        options = Options(offset=BEFORE, only=(place.strategy,), throttle=2 * SIZE)
        result = run(make_plan(held, options), progress=fail)
    assert failed
    assert failed[0] < SIZE
    assert result.whole or result.errno  # a clone reads nothing
    done = parse_token(result.token).done
    return Told(result, done if result.durable else ())


def killed(place: Place) -> Told:
    """In a process of its own, that dies when a quarter is done."""
    child = os.fork()
    if not child:
        try:
            copy_and_die(place)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status
    return Told(None, ())


def copy_and_die(place: Place) -> None:
    def die(done: int, _all: int, _name: str) -> None:
        if done >= SIZE // 4:
            os.kill(os.getpid(), signal.SIGKILL)

    with opened(place.point / "a", place.point / "b") as ends:
        held = as_if_sealed(ends) if place.strategy in OFFLOADS else ends
        options = Options(offset=BEFORE, only=(place.strategy,), throttle=2 * SIZE)
        run(make_plan(held, options), progress=die)


@pytest.mark.parametrize(
    ("strategy", "fault"),
    [(s, f) for s in PLACES for f in (*FAULTS, KILL) if (s, f) not in LEFT_OUT],
)
def test_what_was_reported_is_on_the_device(
    strategy: str,
    fault: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    whole = BEFORE + SIZE
    new, old = pattern(whole), pattern(whole, seed=2)
    with Place(strategy, tmp_path).made() as place:
        a, b = filled(place.point / "a", new), filled(place.point / "b", old)
        with opened(a, b) as ends:
            held = as_if_sealed(ends) if strategy in OFFLOADS else ends
            first = run(make_plan(held, Options(length=BEFORE, only=(strategy,))))
        assert first.whole, first.error
        assert first.durable
        assert first.bytes_by_strategy == {strategy: BEFORE}
        sh("sync")
        Path("/proc/sys/vm/drop_caches").write_text("3")
        told = killed(place) if fault == KILL else copy(place, fault)
        place.again()
        found = b.read_bytes()
        assert a.read_bytes() == new
        assert found[:BEFORE] == new[:BEFORE], "what was durable before is gone"
        for part in told.ranges:
            span = slice(part.offset, part.end)
            assert found[span] == new[span], f"reported, and not there: {part}"
        assert len(found) == whole
        assert is_old_or_new(found, old, new)
        record_property(
            "fault",
            {
                "what": f"copy by {strategy}",
                "filesystem": "ext4 over xfs" if strategy == "lower" else place.kind,
                "fault": fault,
                "reported": told.words,
                "found": "what was reported; the rest old or new; what was durable before",
            },
        )
