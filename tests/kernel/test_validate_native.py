"""Mapping validation natively: other processes map files in every wrong way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from other_process import other

from sealsvc.core.model import ByteRange
from sealsvc.linux import native
from sealsvc.linux.native import Validation
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

PAGE = 4096
MiB = 1 << 20
HUGE = 2 * MiB
SIZE = 64 * PAGE
WHOLE = ByteRange(0, SIZE)

MAP = """\
path, size = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDWR)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                      ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
SHARED, PRIVATE, FIXED, POPULATE = 1, 2, 16, 0x8000
def mapped(flags=SHARED | POPULATE, at=None, length=size, offset=0, fd=fd):
    if at is None:  # with a page of nothing on either side
        at = libc.mmap(None, length + 2 * PAGE, 0, 0x22, -1, 0) + PAGE
        flags |= FIXED
    address = libc.mmap(at, length, 3, flags, fd, offset)
    assert address not in (None, 2**64 - 1), ctypes.get_errno()
    return address
PAGE = 4096
"""


@pytest.fixture(params=["xfs", "ext4"])
def path(request: pytest.FixtureRequest) -> Iterator[Path]:
    made = request.getfixturevalue(request.param) / "validated"
    made.write_bytes(os.urandom(SIZE))
    with made.open("rb") as file:
        os.fsync(file.fileno())
    yield made
    made.unlink()


@pytest.fixture(params=["scan", "entries"])
def by(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"read_entries": request.param == "entries"}


def ask(pid: int, path: Path, span: ByteRange = WHOLE, **wanted: Any) -> Validation:
    st = path.stat()
    return native.validate_mapping(pid, st.st_dev, st.st_ino, span, **wanted)


def address_of(pid: int, path: Path) -> int:
    st = path.stat()
    return min(m.address for m in native.mappings(pid, st.st_dev, st.st_ino, WHOLE))


def script(body: str) -> str:
    return MAP + body + "\nready()\n"


def test_a_populated_shared_mapping_is_valid(path: Path, by: dict[str, Any]) -> None:
    with other(script("mapped()"), path, SIZE) as pid:
        for address in (None, address_of(pid, path)):
            found = ask(pid, path, present=True, address=address, **by)
            assert found.failed is None
            assert (found.areas, found.pages, found.present) == (1, 64, 64)
            assert found.scanned is not by["read_entries"]
            assert found.entries == (64 if by["read_entries"] else 0)


def test_part_of_a_mapping(path: Path, by: dict[str, Any]) -> None:
    with other(script("mapped(length=32 * PAGE, offset=8 * PAGE)"), path, SIZE) as pid:
        start = address_of(pid, path)
        inside = ByteRange(10 * PAGE, 4 * PAGE)
        found = ask(pid, path, inside, present=True, address=start + 2 * PAGE, **by)
        assert (found.failed, found.pages) == (None, 4)
        assert ask(pid, path, inside, present=True, **by).failed is None
        failed = ask(pid, path, **by).failed
        assert failed
        assert (failed.check, failed.offset, failed.address) == ("coverage", 0, 0)
        failed = ask(pid, path, ByteRange(8 * PAGE, 33 * PAGE), address=start, **by).failed
        assert failed
        assert (failed.check, failed.offset) == ("coverage", 40 * PAGE)
        assert failed.address == start + 32 * PAGE


def test_the_first_absent_page_is_named(path: Path, by: dict[str, Any]) -> None:
    body = "a = mapped(SHARED)\nlibc.madvise(a, 5 * PAGE, 22)"  # MADV_POPULATE_READ
    with other(script(body), path, SIZE) as pid:
        found = ask(pid, path, present=True, **by)
        assert found.failed
        # Reading ahead maps pages around those that are asked for.
        assert found.failed.check == "present"
        assert found.failed.offset == found.present * PAGE >= 5 * PAGE
        assert found.failed.address == address_of(pid, path) + found.failed.offset
        assert ask(pid, path, **by).failed is None, "nobody asked for pages to be present"


def test_pages_that_were_dropped_again(path: Path, by: dict[str, Any]) -> None:
    body = "a = mapped()\nlibc.madvise(a + 7 * PAGE, PAGE, 4)"  # MADV_DONTNEED
    with other(script(body), path, SIZE) as pid:
        failed = ask(pid, path, present=True, **by).failed
        assert failed
        assert (failed.check, failed.offset) == ("present", 7 * PAGE)


def test_a_private_mapping_is_none(path: Path) -> None:
    with other(script("mapped(PRIVATE | POPULATE)"), path, SIZE) as pid:
        start = address_of(pid, path)
        for address in (None, start):
            failed = ask(pid, path, address=address).failed
            assert failed
            assert (failed.check, failed.offset, failed.address) == ("shared", 0, start)


def test_a_private_mapping_beside_a_shared_one_does_not_matter(path: Path) -> None:
    with other(script("mapped(PRIVATE); mapped()"), path, SIZE) as pid:
        found = ask(pid, path, present=True)
        assert (found.failed, found.areas) == (None, 1)


def test_a_private_piece_in_the_middle(path: Path) -> None:
    body = "a = mapped()\nmapped(PRIVATE | FIXED, a + 3 * PAGE, PAGE, 3 * PAGE)"
    with other(script(body), path, SIZE) as pid:
        start = address_of(pid, path)
        for address in (None, start):
            failed = ask(pid, path, address=address).failed
            assert failed
            assert (failed.check, failed.offset) == ("shared", 3 * PAGE)
            assert failed.address == start + 3 * PAGE


def test_another_file(path: Path) -> None:
    another = path.with_suffix(".other")
    another.write_bytes(bytes(SIZE))
    try:
        with other(script("mapped()"), another, SIZE) as pid:
            failed = ask(pid, path).failed
            assert failed
            assert failed.check == "coverage"
            start = address_of(pid, another)
            failed = ask(pid, path, address=start).failed
            assert failed
            assert failed.check == "inode"
            st = another.stat()
            assert (failed.expected, failed.found) == (path.stat().st_ino, st.st_ino)
            assert failed.found_device == st.st_dev
    finally:
        another.unlink()


def test_the_wrong_address(path: Path) -> None:
    with other(script("mapped()"), path, SIZE) as pid:
        start = address_of(pid, path)
        span = ByteRange(0, 4 * PAGE)
        failed = ask(pid, path, span, address=start + PAGE).failed
        assert failed
        assert (failed.check, failed.expected, failed.found) == ("offset", 0, PAGE)
        failed = ask(pid, path, span, address=start - PAGE).failed
        assert failed
        assert (failed.check, failed.address) == ("coverage", start - PAGE)


def test_pieces_count_together(path: Path, by: dict[str, Any]) -> None:
    body = "a = mapped()\nfor i in range(0, 64, 2): libc.mprotect(a + i * PAGE, PAGE, 1)"
    with other(script(body), path, SIZE) as pid:
        for address in (None, address_of(pid, path)):
            found = ask(pid, path, present=True, address=address, **by)
            assert (found.failed, found.areas, found.present) == (None, 64, 64)


def test_a_hole_between_pieces(path: Path) -> None:
    with other(script("a = mapped()\nlibc.munmap(a + 9 * PAGE, PAGE)"), path, SIZE) as pid:
        failed = ask(pid, path).failed
        assert failed
        assert (failed.check, failed.offset) == ("coverage", 9 * PAGE)
        start = address_of(pid, path)
        failed = ask(pid, path, address=start).failed
        assert failed
        assert (failed.check, failed.address) == ("coverage", start + 9 * PAGE)


def test_pieces_in_another_order_count_only_without_an_address(path: Path) -> None:
    body = "a = mapped()\nmapped(SHARED | POPULATE | FIXED, a + PAGE, 63 * PAGE, 0)"
    body += "\nb = mapped(SHARED | POPULATE, None, 2 * PAGE, 62 * PAGE)"
    with other(script(body), path, SIZE) as pid:
        assert ask(pid, path, present=True).failed is None
        st = path.stat()
        start = min(
            m.address
            for m in native.mappings(pid, st.st_dev, st.st_ino, WHOLE)
            if m.length == 63 * PAGE
        )
        failed = ask(pid, path, address=start - PAGE).failed
        assert failed
        assert (failed.check, failed.expected, failed.found) == ("offset", PAGE, 0)


def test_every_shared_mapping_is_looked_at(path: Path, by: dict[str, Any]) -> None:
    body = "a = mapped(); b = mapped()\nlibc.madvise(b, PAGE, 4)"
    with other(script(body), path, SIZE) as pid:
        failed = ask(pid, path, present=True, **by).failed
        assert failed
        assert failed.check == "present"


def test_without_map_sync(path: Path) -> None:
    with other(script("mapped()"), path, SIZE) as pid:
        failed = ask(pid, path, sync=True).failed
        assert failed
        assert (failed.check, failed.address) == ("map-sync", address_of(pid, path))


def test_a_process_that_is_gone_maps_nothing(path: Path) -> None:
    with other(script("mapped()"), path, SIZE) as pid:
        pass
    failed = ask(pid, path).failed
    assert failed
    assert failed.check == "coverage"


def test_memory_of_a_process_whose_first_thread_has_ended(path: Path, by: dict[str, Any]) -> None:
    body = """
mapped()
def stay():
    ready()
    os._exit(0)
threading.Thread(target=stay).start()
ctypes.pythonapi.PyEval_SaveThread.restype = ctypes.c_void_p
# Ends this thread alone, and without the lock that Python threads share.
libc.syscall.argtypes = [ctypes.c_long, ctypes.c_long]
import platform
ctypes.CDLL(None).syscall(93 if platform.machine() == "aarch64" else 60, 0)
"""
    with other(MAP + body, path, SIZE) as pid:
        until(lambda: ") Z " in Path(f"/proc/{pid}/stat").read_text())
        found = ask(pid, path, present=True, **by)
        assert (found.failed, found.present) == (None, 64)
        failed = ask(pid, path, sync=True, **by).failed
        assert failed
        assert failed.check == "map-sync"


def test_what_is_no_question(path: Path) -> None:
    for span in (ByteRange(1, PAGE), ByteRange(0, PAGE + 1), ByteRange(0, 0)):
        with pytest.raises(OSError, match="Invalid argument"):
            ask(os.getpid(), path, span)
    with pytest.raises(OSError, match="Invalid argument"):
        ask(os.getpid(), path, address=PAGE + 1)


def test_mappings_that_change_meanwhile_are_never_half_seen(path: Path) -> None:
    """The other process swaps a valid mapping for a private one and back without pause."""
    body = """
a = mapped()
def swap():
    while True:
        mapped(PRIVATE | FIXED | POPULATE, a)
        mapped(SHARED | FIXED | POPULATE, a)
threading.Thread(target=swap, daemon=True).start()
"""
    outcomes = set()
    with other(script(body), path, SIZE) as pid:
        begun = time.monotonic()
        # The other one may wait for a processor at first.
        while (passed := time.monotonic() - begun) < 1.0 or (len(outcomes) < 2 and passed < 60.0):
            try:
                found = ask(pid, path, present=True)
            except BlockingIOError:
                outcomes.add("changing")
                continue
            outcomes.add(found.failed.check if found.failed else "valid")
    assert outcomes <= {"valid", "shared", "coverage", "present", "changing"}
    assert len(outcomes) > 1


# Places of pages: on a page cache file the "device" is made up of what pagemap itself says.


def frames(pid: int, address: int, pages: int) -> np.ndarray[Any, Any]:
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as file:
        file.seek(address // PAGE * 8)
        entries = np.frombuffer(file.read(pages * 8), np.uint64)
    return entries & np.uint64((1 << 55) - 1)


def extents_of(frames: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = np.zeros((len(frames), 4), np.uint64)
    rows[:, 0] = np.arange(len(frames)) * PAGE
    rows[:, 1] = frames * np.uint64(PAGE)
    rows[:, 2] = PAGE
    return rows


def test_each_page_is_where_its_extent_says(path: Path, by: dict[str, Any]) -> None:
    with other(script("mapped()"), path, SIZE) as pid:
        start = address_of(pid, path)
        rows = extents_of(frames(pid, start, 64))
        found = ask(pid, path, present=True, map=rows, **by)
        assert (found.failed, found.placed, found.entries) == (None, 64, 64)
        base = 7 * PAGE
        rows[:, 1] -= np.uint64(base)
        assert ask(pid, path, present=True, map=rows, base=base, **by).placed == 64
        rows[41, 1] += np.uint64(PAGE)
        found = ask(pid, path, present=True, map=rows, base=base, **by)
        assert found.failed
        assert (found.failed.check, found.failed.offset) == ("pfn", 41 * PAGE)
        assert found.failed.expected == found.failed.found + PAGE
        assert found.failed.address == start + 41 * PAGE
        assert found.placed == 41


def test_a_page_that_no_extent_holds(path: Path, by: dict[str, Any]) -> None:
    with other(script("mapped()"), path, SIZE) as pid:
        rows = extents_of(frames(pid, address_of(pid, path), 64))
        failed = ask(pid, path, map=np.delete(rows, 12, axis=0), **by).failed
        assert failed
        assert (failed.check, failed.offset, failed.expected) == ("pfn", 12 * PAGE, 0)
        failed = ask(pid, path, map=rows[:60], **by).failed
        assert failed
        assert (failed.check, failed.offset) == ("pfn", 60 * PAGE)


def test_absent_pages_have_no_place(path: Path, by: dict[str, Any]) -> None:
    body = "a = mapped()\nlibc.madvise(a + 7 * PAGE, PAGE, 4)"
    with other(script(body), path, SIZE) as pid:
        start = address_of(pid, path)
        rows = extents_of(frames(pid, start, 64))
        found = ask(pid, path, map=rows, **by)
        assert (found.failed, found.present, found.placed) == (None, 63, 63)


def test_without_privilege_places_are_hidden(path: Path) -> None:
    """A holder that looks at itself as nobody: the entries are there, the places are not."""
    code = script(
        "os.setgid(65534); os.setuid(65534)\nimport numpy as np\n"
        "libc.prctl(4, 1, 0, 0, 0)\n"  # PR_SET_DUMPABLE: /proc/self is ours again
        "from sealsvc.linux import native\nfrom sealsvc.core.model import ByteRange\n"
        "a = mapped()\nst = os.fstat(fd)\n"
        "rows = np.array([[0, PAGE, size, 0]], np.uint64)\n"
        "found = native.validate_mapping(os.getpid(), st.st_dev, st.st_ino, ByteRange(0, size),"
        " present=True, map=rows)\n"
        "assert found.failed is None and found.hidden and found.placed == 0, found\n"
    ).replace("ready()", "print('ok')")
    prelude = "import ctypes, os, sys\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, path, str(SIZE)],
        capture_output=True, text=True, check=False, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stdout == "ok\n", done.stderr


# Huge pages: of anonymous shared memory, whose pages need no DAX.


@pytest.fixture
def huge_file() -> Iterator[Path]:
    """A file on tmpfs with huge=always, of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    point = Path("/tmp") / f"sealsvc-huge-{os.getpid()}"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=always", "tmpfs", point], check=True)
    try:
        made = point / "huge"
        made.write_bytes(bytes(8 * MiB))
        yield made
    finally:
        subprocess.run(["umount", point], check=True)
        point.rmdir()


ALIGNED = """
at = libc.mmap(None, size + 2**21, 0, 0x22, -1, 0)
a = mapped(SHARED | FIXED, (at + 2**21 - 1) & -2**21)
for i in range(0, size, PAGE): ctypes.memset(a + i, 1, 1)
"""


def _huge(found: Validation) -> None:
    if not found.huge:
        pytest.skip("no huge pages of shared memory here")


def test_huge_pages_are_counted_and_cost_one_entry(huge_file: Path) -> None:
    size = 8 * MiB
    span = ByteRange(0, size)
    with other(script(ALIGNED), huge_file, size) as pid:
        found = ask(pid, huge_file, span, present=True)
        _huge(found)
        if found.huge < 4:
            pytest.skip("memory is too fragmented for huge pages")
        assert ask(pid, huge_file, span, present=True, huge=True).failed is None
        start = address_of(pid, huge_file)
        rows = extents_of(frames(pid, start, size // PAGE))
        found = ask(pid, huge_file, span, huge=True, map=rows)
        assert (found.failed, found.placed, found.entries) == (None, size // PAGE, 4)
        inside = ByteRange(PAGE, size - 2 * PAGE)
        found = ask(pid, huge_file, inside, huge=True, map=rows)
        assert (found.failed, found.huge, found.placed) == (None, 2, size // PAGE - 2)
        rows[700, 1] += np.uint64(PAGE)
        failed = ask(pid, huge_file, span, huge=True, map=rows).failed
        assert failed
        assert (failed.check, failed.offset) == ("pfn", 700 * PAGE)


def test_a_huge_page_that_was_split(huge_file: Path) -> None:
    size = 8 * MiB
    span = ByteRange(0, size)
    split = "\nlibc.mprotect(a + 2 * 2**20 + 5 * PAGE, PAGE, 1)"
    with other(script(ALIGNED + split), huge_file, size) as pid:
        found = ask(pid, huge_file, span)
        _huge(found)
        failed = ask(pid, huge_file, span, huge=True).failed
        assert failed
        assert (failed.check, failed.offset, failed.found) == ("huge", HUGE, 0)
        # Parts of 2 MiB that are not whole in the range are not asked for.
        assert ask(pid, huge_file, ByteRange(PAGE, 2 * HUGE - 2 * PAGE), huge=True).failed is None


def test_huge_pages_cannot_be_told_from_entries(path: Path, huge_file: Path) -> None:
    size = 8 * MiB
    with other(script(ALIGNED), huge_file, size) as pid:
        failed = ask(pid, huge_file, ByteRange(0, size), huge=True, read_entries=True).failed
        assert failed
        assert (failed.check, failed.offset, failed.found) == ("huge", 0, 1)
        small = ByteRange(PAGE, HUGE)
        assert ask(pid, huge_file, small, huge=True, read_entries=True).failed is None


# A holder with very many areas.

MANY = """
big = os.open(sys.argv[3], os.O_RDWR)
at = libc.mmap(None, 20000 * PAGE, 0, 0x22, -1, 0)
for i in range(20000): mapped(SHARED | FIXED, at + i * PAGE, PAGE, i % 2 * 2 * PAGE, big)
a = mapped()
"""


def quickest(act: Callable[[], object]) -> float:
    """Seconds, of some attempts: others on the machine may disturb one."""
    took = []
    for _ in range(5):
        begun = time.monotonic()
        act()
        took.append(time.monotonic() - begun)
    return min(took)


@pytest.mark.slow
def test_twenty_thousand_areas(xfs: Path) -> None:
    path, another = xfs / "wanted", xfs / "areas"
    path.write_bytes(bytes(SIZE))
    another.write_bytes(bytes(4 * PAGE))
    try:
        with other(script(MANY), path, SIZE, another) as pid:
            lines = Path(f"/proc/{pid}/maps").read_text().count(f"{another}")
            assert lines >= 20000
            text = Path(f"/proc/{pid}/maps")
            floor = quickest(lambda: bool(text.read_bytes()))
            for wanted in ({}, {"address": address_of(pid, path)}):
                found = ask(pid, path, present=True, **wanted)
                assert (found.failed, found.areas) == (None, 1)
                took = quickest(lambda wanted=wanted: ask(pid, path, present=True, **wanted))
                print(f"{took / floor:.2f} times as long as the areas' text")
                assert took < 20 * floor, "each area is looked at once"
            failed = ask(pid, path, sync=True).failed
            assert failed
            assert failed.check == "map-sync"
            # They are areas of this file.
            found = ask(pid, another, ByteRange(0, PAGE))
            assert (found.failed, found.areas) == (None, 10000)
    finally:
        path.unlink()
        another.unlink()


def test_a_sparse_holder_does_not_keep_us_for_long(xfs: Path) -> None:
    path, size = xfs / "sparse", 8 << 40
    path.touch()
    os.truncate(path, size)
    span = ByteRange(0, size)
    try:
        with other(script("for i in range(4): mapped(SHARED)"), path, size) as pid:
            begun = time.monotonic()
            found = ask(pid, path, span)
            print(f"{time.monotonic() - begun:.2f} s")
            assert (found.failed, found.areas, found.present) == (None, 4, 0)
            assert time.monotonic() - begun < 60.0
        with (
            other(script("for i in range(9): mapped(SHARED)"), path, size) as pid,
            pytest.raises(OSError, match="Argument list too long"),
        ):
            ask(pid, path, span)
    finally:
        path.unlink()


def test_the_walk_goes_without_the_lock_of_python(path: Path) -> None:
    """Other threads go on while a large mapping is looked at."""
    with other(script("mapped()"), path, SIZE) as pid:
        stop = threading.Event()
        turns = 0

        def spin() -> None:
            nonlocal turns
            while not stop.is_set():
                turns += 1

        thread = threading.Thread(target=spin)
        thread.start()
        for _ in range(200):
            ask(pid, path, present=True)
        stop.set()
        thread.join()
    assert turns > 0


def test_vma_flags_are_those_of_smaps(path: Path) -> None:
    """No file system here has MAP_SYNC: what smaps says of this area has no `sf`."""
    with other(script("mapped()"), path, SIZE) as pid:
        smaps = Path(f"/proc/{pid}/smaps").read_text()
        entry = smaps[smaps.index(f"{address_of(pid, path):x}-") :]
        flags = re.search(r"^VmFlags: (.*)$", entry, re.M)
        assert flags
        assert "sf" not in flags[1].split()
