"""Each strategy on each file system: the same bytes, whatever the way."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from sealsvc.copies import Measured, Options, ends, make_plan, parse_token, plan, run
from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.copies.run import LEARNT
from sealsvc.copies.strategies.interface import ByDescriptors
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.linux import native
from tests.copies.conftest import MiB, copied, opened, pattern

pytestmark = pytest.mark.kernel

PUNCH = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
STRATEGIES = ("clone", "range", "direct", "plain")


def with_hole(path: Path, size: int) -> bytearray:
    data = bytearray(pattern(size))
    path.write_bytes(data)
    fd = os.open(path, os.O_RDWR)
    native.fallocate(fd, PUNCH, MiB, MiB)
    os.close(fd)
    data[MiB : 2 * MiB] = bytes(MiB)
    return data


@pytest.mark.parametrize("name", STRATEGIES)
def test_copies_a_whole_file_with_a_hole(place: Path, name: str) -> None:
    data = with_hole(place / "a", 4 * MiB + 123)
    (place / "b").write_bytes(b"x" * (6 * MiB))  # longer, and full where the source has a hole
    result = copied(place / "a", place / "b", Options(whole=True, only=(name,)))
    assert result.whole
    assert result.durable
    assert not result.source_changed
    assert (place / "b").read_bytes() == data
    assert sum(row.length for row in result.rows) == len(data)
    used = result.bytes_by_strategy
    if name == "clone" and "clone" not in used:
        assert set(used) == {"plain", "zero"}  # no reflink here: said, and done otherwise
    else:
        assert used[name] >= 3 * MiB


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    ("offset", "length", "to"),
    [(0, 1, 0), (1, 3 * MiB, 5000), (4096, MiB + 4096, 8192), (MiB - 7, 2 * MiB, MiB - 7)],
)
def test_a_range_changes_nothing_else(
    place: Path, name: str, offset: int, length: int, to: int
) -> None:
    data, there = with_hole(place / "a", 4 * MiB), bytearray(pattern(5 * MiB, seed=9))
    (place / "b").write_bytes(there)
    options = Options(offset=offset, length=length, to=to, only=(name,))
    assert copied(place / "a", place / "b", options).whole
    there[to : to + length] = data[offset : offset + length]
    assert (place / "b").read_bytes() == there


def test_a_range_behind_the_end_is_cut_and_an_empty_one_is_whole(place: Path) -> None:
    (place / "a").write_bytes(b"0123456789")
    cut = copied(place / "a", place / "b", Options(offset=6, length=100, to=0))
    assert (cut.whole, cut.requested, (place / "b").read_bytes()) == (True, 4, b"6789")
    empty = copied(place / "a", place / "b", Options(offset=50, length=10))
    assert (empty.whole, empty.requested, empty.rows) == (True, 0, [])


def test_a_hole_at_the_end_extends_the_destination(place: Path) -> None:
    (place / "a").write_bytes(pattern(MiB))
    os.truncate(place / "a", 3 * MiB + 5)
    assert copied(place / "a", place / "b", Options(only=("plain",))).whole
    assert (place / "b").stat().st_size == 3 * MiB + 5
    assert (place / "b").stat().st_blocks * 512 < 2 * MiB
    assert (place / "b").read_bytes() == (place / "a").read_bytes()


def test_unwritten_extents_are_zeros_and_are_not_read(place: Path) -> None:
    (place / "a").touch()
    fd = os.open(place / "a", os.O_RDWR)
    os.posix_fallocate(fd, 0, 2 * MiB)
    os.close(fd)
    (place / "b").write_bytes(b"y" * (2 * MiB))
    result = copied(place / "a", place / "b", Options(only=("plain",)))
    assert set(result.bytes_by_strategy) == {"zero"}
    assert (place / "b").read_bytes() == bytes(2 * MiB)


def test_overlapping_ranges_of_one_file_are_refused(place: Path) -> None:
    (place / "a").write_bytes(pattern(2 * MiB))
    with opened(place / "a", place / "a") as ends, pytest.raises(Refusal, match="overlap"):
        make_plan(ends, Options(offset=0, length=MiB, to=4096))
    before = (place / "a").read_bytes()
    assert copied(place / "a", place / "a", Options(length=MiB, to=MiB)).whole
    assert (place / "a").read_bytes() == before[:MiB] * 2


def test_in_place_keeps_the_map_of_the_destination(place: Path) -> None:
    data = with_hole(place / "a", 4 * MiB)
    (place / "b").write_bytes(pattern(4 * MiB, seed=3))
    with opened(place / "a", place / "b") as ends:
        before = native.read_extents(ends.destination.fd, None)
        plan = make_plan(ends, Options(in_place=True))
        assert "sealed" in plan.refused.get("clone", "") or "share blocks" in plan.refused["clone"]
        assert run(plan).whole
        after = native.read_extents(ends.destination.fd, None)
    assert (before == after).all()
    assert (place / "b").read_bytes() == data


def test_a_cancelled_copy_is_resumed_from_its_exact_byte(place: Path) -> None:
    data = pattern(4 * MiB + 77)
    (place / "a").write_bytes(data)
    cancel = threading.Event()

    def stop(done: int, _all: int, _name: str) -> None:
        if done >= MiB:
            cancel.set()

    with opened(place / "a", place / "b") as ends:
        plan = make_plan(ends, Options(only=("plain",), throttle=8 * MiB))
        result = run(plan, progress=stop, cancel=cancel)
        assert (result.cancelled, result.whole) == (True, False)
        assert MiB <= result.done < 2 * MiB
        assert (place / "b").read_bytes() == data[: result.done]
        again = ends.again()
        done = parse_token(result.token).ranges(again, 0)
        assert done == (ByteRange(0, result.done),)
        rest = run(make_plan(again, Options(only=("plain",), done=done)))
    assert rest.whole
    assert sum(row.length for row in rest.rows) == len(data) - result.done
    assert (place / "b").read_bytes() == data


def test_a_token_is_refused_once_the_source_has_changed(place: Path) -> None:
    (place / "a").write_bytes(pattern(MiB))
    token = parse_token(copied(place / "a", place / "b").token)
    with (place / "a").open("r+b") as file:
        file.write(b"!")
    with opened(place / "a", place / "b") as ends, pytest.raises(Refusal, match="changed_ns"):
        token.ranges(ends, 0)


def test_a_source_that_changes_meanwhile_is_told(place: Path) -> None:
    (place / "a").write_bytes(pattern(4 * MiB))

    def write(done: int, _all: int, _name: str) -> None:
        if done < 2 * MiB:
            with (place / "a").open("r+b") as file:
                file.write(b"changed")

    with opened(place / "a", place / "b") as ends:
        result = run(make_plan(ends, Options(only=("plain",), throttle=8 * MiB)), progress=write)
    assert result.whole
    assert result.source_changed


def test_a_source_that_becomes_shorter_ends_the_copy(place: Path) -> None:
    (place / "a").write_bytes(pattern(4 * MiB))

    def cut(*_: object) -> None:
        os.truncate(place / "a", 2 * MiB + 10)

    with opened(place / "a", place / "b") as ends:
        result = run(make_plan(ends, Options(only=("plain",), throttle=8 * MiB)), progress=cut)
    assert (result.whole, result.done, result.errno) == (False, 2 * MiB + 10, errno.ESTALE)
    assert result.error_at == result.done


class Failing(ByDescriptors):
    """A strategy that does part of the first call, and then fails."""

    name = "range"

    def __init__(self, parts: int, error: int) -> None:
        self._left, self._error = parts, error

    def copy(self, ends: Ends, span: Span) -> Copied:
        if not self._left:
            return Copied(0, self._error)
        size, self._left = self._left, 0
        data = os.pread(ends.source.fd, size, span.source)
        return Copied(os.pwrite(ends.destination.fd, data, span.destination))


@pytest.mark.parametrize(
    "error", [0, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ETXTBSY]
)
@pytest.mark.parametrize("parts", [0, 1, 70001])
def test_the_next_strategy_goes_on_from_the_exact_byte(xfs: Path, error: int, parts: int) -> None:
    source, there = xfs / "fallback-a", xfs / "fallback-b"
    data = pattern(MiB)
    source.write_bytes(data)
    there.write_bytes(b"")
    with opened(source, there) as ends:
        plan = make_plan(ends, Options(only=("range",)))
        plan.strategies["range"] = Failing(parts, error)
        result = run(plan)
    assert result.whole
    assert [(row.strategy, row.length) for row in result.rows if row.length] == [
        *([("range", parts)] if parts else []),
        ("plain", MiB - parts),
    ]
    assert [fall.source for fall in result.fell_back] == [parts] * len(result.fell_back)
    assert result.fell_back
    assert there.read_bytes() == data


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_other_errors_end_it_and_name_what_is_done(xfs: Path, error: int) -> None:
    source, there = xfs / "error-a", xfs / "error-b"
    data = pattern(MiB)
    source.write_bytes(data)
    there.write_bytes(b"")
    with opened(source, there) as ends:
        plan = make_plan(ends, Options(only=("range",)))
        plan.strategies["range"] = Failing(5000, error)
        result = run(plan)
    assert (result.whole, result.done, result.errno, result.error_at) == (False, 5000, error, 5000)
    assert result.durable
    assert there.read_bytes() == data[:5000]


class Lying(Failing):
    """An offload that says it has copied."""

    offload = True
    name = "range"

    def copy(self, ends: Ends, span: Span) -> Copied:
        return Copied(span.length)


def test_an_offload_that_lies_is_found_out_once_and_never_used_again(xfs: Path) -> None:
    source, there = xfs / "lie-a", xfs / "lie-b"
    data = pattern(MiB)
    source.write_bytes(data)
    there.write_bytes(bytes(MiB))
    measured = Measured(xfs / "measured.json")
    with opened(source, there) as ends:
        plan = make_plan(ends, Options(only=("range",)), measured)
        plan.strategies["range"] = Lying(0, 0)
        result = run(plan, measured)
        assert result.whole
        assert set(result.bytes_by_strategy) == {"plain"}
        assert there.read_bytes() == data
        measured.save()
        again = Measured(xfs / "measured.json")
        refused = make_plan(ends, Options(), again)
        refused.close()
    assert "failed its self-test" in refused.refused["range"]
    assert "byte 0 differed" in refused.refused["range"]


def test_strategies_are_measured_on_the_first_slices_and_the_fastest_is_used(ext4: Path) -> None:
    source, there = ext4 / "measure-a", ext4 / "measure-b"
    data = pattern(64 * MiB)
    source.write_bytes(data)
    measured = Measured()
    with opened(source, there) as ends:
        assert run(make_plan(ends, Options(), measured), measured).whole
        rates = measured.pairs[ends.pair].rates
        assert set(rates) == {"range", "direct", "plain"}
        best = max(rates, key=lambda name: rates[name].rate)
        second = run(make_plan(ends.again(), Options(), measured), measured)
    assert set(second.bytes_by_strategy) == {best}
    assert there.read_bytes() == data
    for path in (source, there):
        path.unlink()


def test_a_rate_that_was_measured_wrongly_is_corrected_by_what_it_leads_to(ext4: Path) -> None:
    """Each large copy halves what a probe was wrong by."""
    source, there = ext4 / "learn-a", ext4 / "learn-b"
    source.write_bytes(pattern(LEARNT))
    measured, wrong = Measured(), 1e15  # bytes per second: nothing copies as fast as that
    with opened(source, there) as ends:
        for name, rate in (("range", wrong), ("direct", 1.0), ("plain", 1.0)):
            measured.took(ends.pair, name, round(rate), 1.0)
        result = run(make_plan(ends, Options(), measured), measured)
        corrected = measured.rate(ends.pair, "range")
    assert set(result.bytes_by_strategy) == {"range"}
    assert corrected is not None
    assert corrected < 0.51 * wrong
    assert there.read_bytes() == source.read_bytes()
    for path in (source, there):
        path.unlink()


def test_a_file_that_was_made_just_now_is_not_written_back_first(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nothing to be written back; where it has a block or a size, it may have."""
    flushed = []
    monkeypatch.setattr(ends.os, "fsync", flushed.append)
    for name, size in (("new", 0), ("old", 1)):
        path = place / name
        path.write_bytes(b"x" * size)
        with path.open("r+b") as file:
            ends.look(file.fileno())
            assert flushed == [file.fileno()] * size


@pytest.mark.parametrize(
    ("length", "slices", "size"),
    [(24, 4, 4), (256, 4, 16), (256, 6, 8), (1 << 20, 4, 32)],
)
def test_long_files_are_measured_on_long_slices(length: int, slices: int, size: int) -> None:
    """MiB; a quarter of the file at most, but for short ones."""
    assert plan._probe_size(length * MiB, slices) == size * MiB
