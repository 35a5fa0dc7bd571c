"""Validating a mapping against reading its pagemap entries: `python -m tests.bench.validation`.

In the lab, with pages of 2 MiB and of 4 KiB on persistent memory:
`./dev lab --pmem 2048 -- .venv/bin/python -m tests.bench.validation --dax`.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sealsvc.core.model import ByteRange
from sealsvc.doctor import syscalls
from sealsvc.linux import native
from sealsvc.linux.host.mapped import has_dax
from sealsvc.linux.host.pmem import base_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from tests.support.scratch import mounted  # noqa: E402 (after the path)

PAGE = 4096
MiB = 1 << 20
BATCH = 1 << 20  # bytes of pagemap entries in one read
SHARED, VALIDATED_SYNC, POPULATE = 0x01, 0x80003, 0x8000


@dataclass(frozen=True)
class Figure:
    """Medians in milliseconds for `size` bytes; `entries` of pagemap were read by the validation,
    of the `pages` that the floor reads all of; `huge` pages of 2 MiB were found."""

    name: str
    size: int
    p50: float
    floor: float
    ratio: float
    pages: int
    entries: int
    huge: int
    placed: int


def measure(path: Path, size: int = 1 << 30, rounds: int = 15) -> list[Figure]:
    """Write `path` (`size` bytes), map it, and validate the mapping in several ways, alternately
    with a bare reading of its pagemap entries."""
    _write(path, size)
    with _mapped(path, size) as (fd, address):
        dax = has_dax(fd)
        proofs: dict[str, dict[str, Any]] = {
            "present": {"present": True},
            "present-by-entries": {"present": True, "read_entries": True},
            "places": {"present": True, **_places(fd, address, size, dax=dax)},
        }
        if dax:
            proofs["everything"] = {**proofs["places"], "sync": True}
        return [_figure(name, fd, address, size, rounds, wanted) for name, wanted in proofs.items()]


def _figure(
    name: str, fd: int, address: int, size: int, rounds: int, wanted: dict[str, Any]
) -> Figure:
    st = os.fstat(fd)

    def validation() -> native.Validation:
        span = ByteRange(0, size)
        return native.validate_mapping(
            os.getpid(), st.st_dev, st.st_ino, span, address=address, **wanted
        )

    found = validation()
    assert found.failed is None, found
    figure: list[float] = []
    floor: list[float] = []
    for _ in range(rounds):
        figure.append(_timed(validation))
        floor.append(_timed(lambda: _read_entries(address, size)))
    p50, beneath = float(np.median(figure)), float(np.median(floor))
    return Figure(
        name, size, round(p50, 4), round(beneath, 4), round(p50 / beneath, 3), size // PAGE,
        found.entries, found.huge, found.placed,
    )  # fmt: skip


def _timed(function: Callable[[], object]) -> float:
    begun = time.perf_counter()
    function()
    return (time.perf_counter() - begun) * 1e3


_ENTRIES = bytearray(BATCH)


def _read_entries(address: int, size: int) -> None:
    """The floor: nothing is made of what is read."""
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        first, end = address // PAGE * 8, (address + size) // PAGE * 8
        for at in range(first, end, BATCH):
            os.preadv(fd, [memoryview(_ENTRIES)[: end - at]], at)
    finally:
        os.close(fd)


def _places(fd: int, address: int, size: int, *, dax: bool) -> dict[str, Any]:
    """On DAX the extents; else what pagemap says itself, in extents of one page: the worst case."""
    if dax:
        return {"map": native.read_extents(fd, None), "base": base_of(os.fstat(fd).st_dev)}
    with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
        file.seek(address // PAGE * 8)
        entries = np.frombuffer(file.read(size // PAGE * 8), np.uint64)
    rows = np.zeros((len(entries), 4), np.uint64)
    rows[:, 0] = np.arange(len(entries)) * PAGE
    rows[:, 1] = (entries & np.uint64((1 << 55) - 1)) * np.uint64(PAGE)
    rows[:, 2] = PAGE
    return {"map": rows}


def _write(path: Path, size: int) -> None:
    with path.open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for at in range(0, size, MiB):
            os.pwrite(file.fileno(), bytes(MiB), at)
        os.fsync(file.fileno())


@contextmanager
def _mapped(path: Path, size: int) -> Iterator[tuple[int, int]]:
    with path.open("r+b") as file:
        how = VALIDATED_SYNC if has_dax(file.fileno()) else SHARED
        with mmap.mmap(file.fileno(), size, flags=how | POPULATE) as mapping:
            yield file.fileno(), syscalls.address(mapping)


def _roots(stack: ExitStack, *, dax: bool) -> Iterator[tuple[str, Path]]:
    """ext4 has extents for pages of 2 MiB by itself; XFS is not asked to align its own."""
    if not dax:
        yield "page-cache", stack.enter_context(mounted("xfs", 12 << 30))
        return
    from tests.lab.pmem import mounted_dax

    for fstype in ("ext4", "xfs"):
        with mounted_dax(fstype) as root:
            yield f"dax-{fstype}", root


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dax", action="store_true", help="on /dev/pmem0, which is overwritten")
    parser.add_argument("--size", type=int, default=1024, help="MiB (1024)")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with ExitStack() as stack:
        for name, root in _roots(stack, dax=options.dax):
            for figure in measure(root / "validated", options.size * MiB, options.rounds):
                print(name, json.dumps(asdict(figure)), flush=True)


if __name__ == "__main__":
    main()
