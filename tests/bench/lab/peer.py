"""A conflict, its recall, the return, and the conflict going on: ours, and the kernel's own.

Both on the same XFS on the same persistent memory. The conflict is a truncate(2) by a local process
that takes one block off the end of a file whose layout, or seal, somebody holds.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figures import Figure, figure_of
from tests.bench.lab import nfs
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, Running

SIZE = 1 << 20
BLOCK = 4096
SAMPLES = 8

SHARE = Path(os.environ.get("SEALSVC_LAB_SHARE", "."))


def peer(rounds: int) -> Iterator[Figure]:
    with (
        mounted_dax("xfs", options="dax=never") as root,
        tempfile.TemporaryDirectory() as made,
        nfs.exported(root, Path(made, "client")),
    ):
        running = Running(Path(made), [root], RISKS)
        running.start()
        try:
            running.ready()
            yield from _compare(root, Path(made, "client"), running, rounds)
        finally:
            running.end()


@contextmanager
def _holding(program: str, running: Running, path: Path) -> Iterator[subprocess.Popen[str]]:
    path.write_bytes(os.urandom(SIZE))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    holder = subprocess.Popen(
        [SHARE / program, running.socket, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield holder
    finally:
        holder.kill()
        holder.communicate()


def _compare(root: Path, client: Path, running: Running, rounds: int) -> Iterator[Figure]:
    """Ours by the control socket, ours by a ring, and theirs, in turn."""
    sealed, ringed, theirs = root / "sealed", root / "ringed", root / "exported"
    fd = os.open(client / "exported", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    by_socket: list[float] = []
    by_ring: list[float] = []
    by_kernel: list[float] = []
    try:
        with mmap.mmap(-1, SIZE) as data:
            os.pwrite(fd, data, 0)
        os.fsync(fd)
        with (
            _holding("holder", running, sealed) as holder,
            _holding("ring_holder", running, ringed) as ring_holder,
        ):
            for _ in range(rounds):
                by_socket += _sealed(sealed, holder)
                by_ring += _sealed(ringed, ring_holder)
                by_kernel += _exported(theirs, fd)
    finally:
        os.close(fd)
    floor = "the same through knfsd's block layouts"
    yield figure_of("conflict-recall-return", by_socket, by_kernel, floor, 0.5)
    yield figure_of("ring-recall-return", by_ring, by_kernel, floor, 0.15)


def _truncated(path: Path) -> float:
    """Microseconds that taking a block off the end takes."""
    size = path.stat().st_size - BLOCK
    begun = time.perf_counter()
    os.truncate(path, size)
    return (time.perf_counter() - begun) * 1e6


def _sealed(path: Path, holder: subprocess.Popen[str]) -> list[float]:
    assert holder.stdin is not None
    assert holder.stdout is not None
    samples = []
    for _ in range(SAMPLES):
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "sealed\n"
        time.sleep(0.02)  # until the holder waits for its recall
        samples.append(_truncated(path))
    return samples


def _exported(path: Path, fd: int) -> list[float]:
    """The client writes past the server, with a layout; the truncation has it recalled."""
    samples = []
    with mmap.mmap(-1, 16 * BLOCK) as data:
        for _ in range(SAMPLES):
            held = nfs.counted("LAYOUTGET")
            os.pwrite(fd, data, 0)
            time.sleep(0.02)
            returned = nfs.counted("LAYOUTRETURN")
            samples.append(_truncated(path))
            assert nfs.counted("LAYOUTRETURN") > returned, "no layout was recalled"
            assert held, "the client never had a layout"
    return samples
