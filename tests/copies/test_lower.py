"""The reference device: a copy in the upper file system becomes a clone in the image below."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sealsvc.copies import Ends, Measured, Options, make_plan, run
from sealsvc.core.extents import EXTENT_SHARED, FLAGS
from sealsvc.linux import native
from tests.copies.conftest import MiB, opened, pattern
from tests.copies.stacks import LOWER, UPPER, filled, lower_filesystem, same_bytes, upper

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module", params=LOWER)
def lower(request: pytest.FixtureRequest) -> Iterator[Path]:
    with lower_filesystem(request.param) as point:
        yield point


@pytest.fixture(scope="module", params=UPPER)
def place(lower: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    with upper(lower, request.param) as point:
        yield point


def as_if_sealed(ends: Ends) -> Ends:
    """Nobody else is here: what the service's seals would keep still stays still."""
    return Ends(replace(ends.source, pinned=True), replace(ends.destination, pinned=True))


def lower_extents_shared(image: Path) -> int:
    """Bytes of the image that FIEMAP calls shared."""
    fd = os.open(image, os.O_RDONLY)
    try:
        rows = native.read_extents(fd, None, sync=True)
    finally:
        os.close(fd)
    return int(rows[rows[:, FLAGS] & EXTENT_SHARED != 0][:, 2].sum())


def test_the_blocks_are_shared_below_and_the_bytes_are_equal_above(
    place: Path, lower: Path
) -> None:
    a = filled(place / "a", pattern(16 * MiB))
    b = filled(place / "b", pattern(16 * MiB, seed=2))
    before = lower_extents_shared(lower / "image")
    with opened(a, b) as ends:
        there = native.read_extents(ends.destination.fd, None)
        result = run(make_plan(as_if_sealed(ends), Options(only=("lower",), strict=True)))
        assert (native.read_extents(ends.destination.fd, None) == there).all()
    assert result.whole
    assert result.durable
    assert result.bytes_by_strategy == {"lower": 16 * MiB}
    assert same_bytes(a, b)
    assert lower_extents_shared(lower / "image") - before >= 16 * MiB


def test_what_the_page_cache_held_is_not_seen_any_more(place: Path) -> None:
    """Read and written before, in large folios that reach beyond the range."""
    data, old = pattern(8 * MiB), pattern(8 * MiB, seed=2)
    a, b = filled(place / "a", data), filled(place / "b", old)
    assert b.read_bytes() == old  # by readahead: large folios
    with b.open("r+b") as file:
        file.seek(3 * MiB)
        file.write(b"dirty" * 1000)  # and not written back
    expected = bytearray(old)
    expected[3 * MiB : 3 * MiB + 5000] = b"dirty" * 1000
    start, length = 2 * MiB + 4096, 3 * MiB + 8192
    expected[start : start + length] = data[start : start + length]
    with opened(a, b) as ends:
        options = Options(offset=start, length=length, only=("lower",), strict=True)
        assert run(make_plan(as_if_sealed(ends), options)).whole
    assert b.read_bytes() == expected
    with open(b, "rb", buffering=0, opener=lambda p, f: os.open(p, f | os.O_DIRECT)) as file:
        import mmap

        room = mmap.mmap(-1, 8 * MiB)
        assert file.readinto(room) == 8 * MiB
        assert room[:] == expected


@pytest.mark.parametrize(("offset", "to", "length"), [(1, 1, 5 * MiB), (4095, 8191, MiB + 2)])
def test_edges_that_are_not_whole_blocks_are_copied_by_another(
    place: Path, offset: int, to: int, length: int
) -> None:
    data, there = pattern(8 * MiB), bytearray(pattern(8 * MiB, seed=2))
    a, b = filled(place / "a", data), filled(place / "b", bytes(there))
    with opened(a, b) as ends:
        options = Options(offset=offset, to=to, length=length, only=("lower",))
        result = run(make_plan(as_if_sealed(ends), options))
    assert result.whole
    assert set(result.bytes_by_strategy) == {"lower", "plain"}
    assert result.bytes_by_strategy["plain"] < 4 * 4096
    there[to : to + length] = data[offset : offset + length]
    assert b.read_bytes() == there


def test_small_blocks_above_are_cloned_where_whole_blocks_below_are(lower: Path) -> None:
    with upper(lower, "ext4", 64 * MiB, mkfs_args=["-b", "1024"], name="small") as place:
        data, old = pattern(4 * MiB), pattern(4 * MiB, seed=2)
        a, b = filled(place / "a", data), filled(place / "b", old)
        with opened(a, b) as ends:
            result = run(make_plan(as_if_sealed(ends), Options(only=("lower",))))
        assert result.whole
        assert b.read_bytes() == data


def test_offsets_that_differ_within_a_block_are_not_cloned(place: Path) -> None:
    data = pattern(4 * MiB)
    a, b = filled(place / "a", data), filled(place / "b", bytes(4 * MiB))
    with opened(a, b) as ends:
        options = Options(offset=0, to=512, length=MiB, only=("lower",))
        result = run(make_plan(as_if_sealed(ends), options))
    assert set(result.bytes_by_strategy) == {"plain"}
    assert b.read_bytes()[512 : 512 + MiB] == data[:MiB]


def test_a_destination_without_written_blocks_is_written(place: Path) -> None:
    data = pattern(2 * MiB)
    a, b = filled(place / "a", data), place / "new"
    b.touch()
    with opened(a, b) as ends:
        os.posix_fallocate(ends.destination.fd, 0, 2 * MiB)
        result = run(make_plan(as_if_sealed(ends.again()), Options(only=("lower",))))
    assert set(result.bytes_by_strategy) == {"plain"}
    assert b.read_bytes() == data
    b.unlink()


def test_no_offload_without_seals(place: Path) -> None:
    a, b = filled(place / "a", pattern(MiB)), filled(place / "b", bytes(MiB))
    with opened(a, b) as ends:
        for half in (Ends(replace(ends.source, pinned=True), ends.destination), ends):
            plan = make_plan(half, Options())
            plan.close()
            assert plan.refused["lower"] == "both files must be sealed by the copy"


def test_the_offload_counts_as_a_write(place: Path) -> None:
    """Times, and bits that any write by the file's user takes away."""
    a, b = filled(place / "a", pattern(MiB)), filled(place / "b", bytes(MiB))
    os.chown(b, 1234, 1234)
    b.chmod(0o6777)
    os.utime(b, (1, 1))
    program = (
        "import sys; from dataclasses import replace; from sealsvc.copies import *;"
        "from sealsvc.copies import calls; calls.drop_privileges();"
        "from tests.copies.conftest import opened; from tests.copies.test_lower import *\n"
        "with opened(Path(sys.argv[1]), Path(sys.argv[2])) as ends:\n"
        "    plan = make_plan(as_if_sealed(ends), Options(only=('lower',), strict=True))\n"
        "    assert run(plan).whole\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join((str(root), str(root / "tests")))
    subprocess.run(
        [sys.executable, "-c", program, a, b], check=True, env={**os.environ, "PYTHONPATH": path}
    )
    st = b.stat()
    assert st.st_mode & 0o7777 == 0o777
    assert st.st_mtime > 1
    assert same_bytes(a, b)


@pytest.mark.parametrize("direct", [False, True], ids=["buffered-loop", "direct-loop"])
@pytest.mark.parametrize("offset", [0, MiB])
def test_loop_devices_with_an_offset_and_with_direct_io(
    lower: Path, offset: int, direct: bool
) -> None:
    with upper(
        lower,
        "ext4",
        64 * MiB,
        offset=offset,
        direct=direct,
        name="other",
    ) as place:
        a = filled(place / "a", pattern(4 * MiB))
        b = filled(place / "b", pattern(4 * MiB, seed=2))
        loop = Path(f"/dev/{os.path.basename(os.path.realpath(_device_of(place)))}")
        loop.read_bytes()  # the device's own page cache holds the old blocks
        with opened(a, b) as ends:
            options = Options(only=("lower",), strict=True)
            assert run(make_plan(as_if_sealed(ends), options)).whole
        assert same_bytes(a, b)
        at = _first_block(b)
        with loop.open("rb") as device:
            device.seek(at)
            assert device.read(4096) == a.read_bytes()[:4096]


def test_between_two_images_on_one_lower_file_system(lower: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(upper(lower, "ext4", 64 * MiB, name="first"))
        second = stack.enter_context(upper(lower, "ext4", 64 * MiB, name="second"))
        a = filled(first / "a", pattern(4 * MiB))
        b = filled(second / "b", pattern(4 * MiB, seed=2))
        with opened(a, b) as ends:
            options = Options(only=("lower",), strict=True)
            assert run(make_plan(as_if_sealed(ends), options)).whole
        assert same_bytes(a, b)


def test_a_lower_file_system_that_cannot_share_is_named(ext4: Path) -> None:
    with upper(
        ext4,
        "ext4",
        64 * MiB,
    ) as place:
        a, b = filled(place / "a", pattern(MiB)), filled(place / "b", bytes(MiB))
        with opened(a, b) as ends:
            plan = make_plan(as_if_sealed(ends), Options(), Measured())
            plan.close()
    assert plan.refused["lower"] == "the file system of the image (ext4) cannot share blocks"


def _device_of(place: Path) -> Path:
    st = place.stat()
    return Path(f"/sys/dev/block/{os.major(st.st_dev)}:{os.minor(st.st_dev)}")


def _first_block(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return int(native.read_extents(fd, None)[0, 1])
    finally:
        os.close(fd)
