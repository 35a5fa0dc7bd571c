"""Tags on disk: one directory for each attachment, read through mmap-ninja.

It holds the tags as uint8 (blocks, width), a state for each block, when each stretch was first and
last found right and when it was last tagged, and about.json; of a byte stream also where each of
its blocks (PIs) lies. It is built aside and renamed into its place, whole. Afterwards everything
is changed in place by write(2), never by a store into the mapping: on a full disk that would be
SIGBUS.

The order of a change is what a crash cannot undo: first the blocks are marked suspect, then their
tags are written, then they are marked clean, each step on disk before the next begins. So whoever
is killed in between leaves suspect blocks, never clean ones with a wrong tag.

Everything here blocks; one thread at a time works on a store, and one process: it holds a lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from mmap_ninja import numpy as ninja

from sealsvc.core.model import ByteRange, FileId
from sealsvc.protocol.integrity import Writes
from sealsvc.runtime import faults

Bytes = npt.NDArray[np.uint8]

STRETCH = 1 << 20  # bytes of data that share the times of their last check
STREAM_BLOCKS = 4096  # PIs of one byte stream


class BlockState(IntEnum):
    """clean: the tag is true. open: a writer may be inside, the tag may be stale. suspect: a writer
    or the service ended in the middle, or the data was found changed; never tagged again unless the
    holder blesses it. Of a byte stream: superseded in part by a newer PI, and free."""

    CLEAN = 0
    OPEN = 1
    SUSPECT = 2
    SUPERSEDED = 3
    FREE = 4


class About(msgspec.Struct, kw_only=True):
    """`profile` are the keys that describe it. `changed` is the file's change time (ctime, ns) when
    tags and data were last known to agree: a file that has another has been written to, perhaps.
    `foreign`: it had been written to when it was sealed, and not all of it was compared since.
    `scrub` is the block where a scrub goes on (-1: none is under way). `asked` is who asked for it:
    a uid, and the principal of the REST API (None: written by a version that did not record it)."""

    id: str
    file: FileId
    path: str
    profile: dict[str, int | str]
    range: ByteRange
    uncovered: int
    tag: int
    storage: int
    secret: str
    writes: Writes
    at_grant: bool
    owner: int
    made: float
    changed: int = 0
    foreign: bool = False
    scrub: int = -1
    scrub_started: float = 0.0
    asked: tuple[int, str] | None = None

    @property
    def asker(self) -> tuple[int, str]:
        """To whose share the attachment counts."""
        return self.asked or (self.owner, "")


class StoreError(Exception):
    """A store that cannot be used; the text says which, and why."""


class Column:
    """One array (rows, width) in its directory."""

    def __init__(self, directory: Path, dtype: Any) -> None:
        self.rows = ninja.open_existing(directory, mode="r")
        self._dtype = np.dtype(dtype)
        if self.rows.dtype != self._dtype or self.rows.ndim != 2:
            raise StoreError(f"{directory}: not an array of {self._dtype} with two dimensions")
        self._fd = os.open(directory / "data.ninja", os.O_WRONLY | os.O_CLOEXEC)

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def write(self, first: int, rows: npt.NDArray[Any]) -> None:
        """On disk when it returns."""
        self.put(first, rows)
        self.sync()

    def put(self, first: int, rows: npt.NDArray[Any]) -> None:
        """On disk after `sync`."""
        data = memoryview(np.ascontiguousarray(rows, self._dtype).tobytes())
        at = first * self._dtype.itemsize * int(self.rows.shape[1])
        while data:
            done = os.pwrite(self._fd, data, at)
            data, at = data[done:], at + done

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Who writes later gets EBADF, and reaches no other file by the number."""
        os.close(self._fd)
        self._fd = -1


def _fill(directory: Path, parts: Iterable[npt.NDArray[Any]]) -> None:
    """An array, of parts. The first row alone goes through a mapping, and only after its block is
    there (mmap-ninja writes its last byte first); the others are appended by write(2)."""
    rows = None
    for part in parts:
        if rows is None:
            rows = ninja.from_ndarray(directory, part[:1])
            rows.flush()
            part = part[1:]
        if len(part):
            ninja.extend(rows, part)
            rows = ninja.open_existing(directory, mode="r+")


def _sync(directory: Path) -> None:
    """Every file below it, and the directory itself."""
    for path in [*sorted(directory.rglob("*")), directory]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class TagStore:
    def __init__(self, directory: Path) -> None:
        """Raises StoreError for one that is not whole, or in use."""
        self.directory = directory
        try:
            self.about = msgspec.json.decode((directory / "about.json").read_bytes(), type=About)
            self._lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._tags = Column(directory / "tags", np.uint8)
            self._states = Column(directory / "states", np.uint8)
            self._good = Column(directory / "good", np.float64)
            # A store of an earlier release has none: each stretch counts as tagged since.
            self._tagged = None
            if (directory / "tagged").exists():
                self._tagged = Column(directory / "tagged", np.float64)
            self._places = None
            if not self.about.profile["granularity"]:
                self._places = Column(directory / "places", np.uint64)
        except BlockingIOError:
            raise StoreError(f"{directory}: another process has it") from None
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise StoreError(f"{directory}: {error}") from error
        if len(self._tags) != len(self._states):
            raise StoreError(f"{directory}: as many tags as states: no")

    @property
    def blocks(self) -> int:
        return len(self._states)

    @staticmethod
    def build(parent: Path, about: About, parts: Iterator[tuple[Bytes, Bytes]]) -> TagStore:
        """From tags (n, width) and their states (n,), part by part. Of a byte stream those of all
        its blocks, which are free."""
        parent.mkdir(parents=True, exist_ok=True)
        aside, place = parent / f".{about.id}.new", parent / about.id
        shutil.rmtree(aside, ignore_errors=True)
        states: list[Bytes] = []

        def tags() -> Iterator[Bytes]:
            for part, state in parts:
                states.append(state)
                yield part

        try:
            _fill(aside / "tags", tags())
            _fill(aside / "states", (state.reshape(-1, 1) for state in states))
            stretches = -(-about.range.length // STRETCH)
            if not about.profile["granularity"]:
                stretches = STREAM_BLOCKS
                _fill(aside / "places", [np.zeros((STREAM_BLOCKS, 3), np.uint64)])
            times = np.array([[time.time(), time.time()]] * stretches)
            _fill(aside / "good", [times])
            _fill(aside / "tagged", [times[:, :1]])
            (aside / "about.json").write_bytes(msgspec.json.encode(about))
            _sync(aside)
            faults.point("integrity:built")
            aside.rename(place)
            _sync_directory(parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return TagStore(place)

    def tags(self, first: int, count: int) -> Bytes:
        """A copy."""
        return np.array(self._tags.rows[first : first + count])

    def states(self, first: int, count: int) -> Bytes:
        """A copy, (count,)."""
        return np.array(self._states.rows[first : first + count, 0])

    def counts(self) -> dict[str, int]:
        found = np.bincount(self._states.rows[:, 0], minlength=len(BlockState))
        return {state.name.lower(): int(found[state]) for state in BlockState}

    def mark(self, first: int, states: Bytes) -> None:
        if not np.array_equal(self.states(first, len(states)), states):
            self._states.write(first, states.reshape(-1, 1))

    def move(self, was: BlockState, to: BlockState, first: int = 0, count: int = -1) -> int:
        """Blocks that `was` describes become `to`; how many."""
        states = self.states(first, self.blocks if count < 0 else count)
        met = states == was
        states[met] = to
        self.mark(first, states)
        return int(met.sum())

    def write_tags(self, first: int, tags: Bytes, states: Bytes | None = None) -> None:
        """Tags of these blocks: suspect while they are written, afterwards as `states` says (all
        clean)."""
        clean = np.full(len(tags), BlockState.CLEAN, np.uint8)
        self.write_runs([(first, tags, clean if states is None else states)])

    def write_runs(self, runs: Sequence[tuple[int, Bytes, Bytes]]) -> None:
        """The same for several runs of blocks (first, tags, states), in order: each step for all of
        them, so that many small ones cost as few flushes as one."""
        if not runs:
            return
        low, high = runs[0][0], runs[-1][0] + len(runs[-1][1])
        after = self.states(low, high - low)
        marked = after.copy()
        for first, tags, states in runs:
            marked[first - low : first - low + len(tags)] = BlockState.SUSPECT
            after[first - low : first - low + len(tags)] = states
        self.mark(low, marked)
        faults.point("integrity:marked")
        for first, tags, _ in runs:
            self._note_tagged(first, len(tags))
            self._tags.put(first, tags)
        if self._tagged is not None:
            self._tagged.sync()
        self._tags.sync()
        faults.point("integrity:tagged")
        self.mark(low, after)

    def places(self) -> npt.NDArray[np.uint64]:
        """Of a byte stream: start, end (bytes of the file) and age (the newest has the largest) of
        each block, a copy (blocks, 3)."""
        assert self._places is not None
        return np.array(self._places.rows)

    def put(self, block: int, start: int, end: int, tag: Bytes) -> None:
        """Of a byte stream: a new PI in a free place, suspect until `mark` says otherwise."""
        assert self._places is not None
        self.mark(block, np.array([BlockState.SUSPECT], np.uint8))
        age = int(self._places.rows[:, 2].max()) + 1
        self._note_tagged(block, 1)
        if self._tagged is not None:
            self._tagged.sync()
        self._places.write(block, np.array([[start, end, age]], np.uint64))
        self._tags.write(block, tag.reshape(1, -1))

    def _note_tagged(self, first: int, count: int) -> None:
        """On disk before its block is clean: what was tagged is not compared yet."""
        if self._tagged is None:
            return
        size = int(self.about.profile["granularity"])
        low, high = first, first + count
        if size:
            low, high = first * size // STRETCH, -(-(first + count) * size // STRETCH)
        self._tagged.put(low, np.full((high - low, 1), time.time()))

    def compared_since(self, oldest: float) -> npt.NDArray[np.bool_]:
        """Of each stretch: was all of it found right after `oldest` and after it was last tagged?
        A time that lies ahead (the clock was set back) proves nothing."""
        last = self._good.rows[:, 1]
        if self._tagged is None:
            return np.zeros(len(last), bool)
        tagged = self._tagged.rows[: len(last), 0]
        found: npt.NDArray[np.bool_] = (last >= oldest) & (last >= tagged) & (last <= time.time())
        return found

    @property
    def oldest(self) -> float:
        """When the stretch was compared that is waiting for the longest time."""
        return float(self._good.rows[:, 1].min())

    def found_good(self, stretches: list[int]) -> None:
        """Stretches, in order, were compared, and all of each is right. On disk some time later, or
        after `sync_good`: a crash that loses it only has them compared once more."""
        low, high = stretches[0], stretches[-1] + 1
        rows = np.array(self._good.rows[low:high])
        rows[np.array(stretches) - low, 1] = time.time()
        self._good.put(low, rows)

    def sync_good(self) -> None:
        self._good.sync()

    def good(self, stretch: int) -> tuple[float, float]:
        """When it was first and last found right."""
        first, last = self._good.rows[stretch]
        return float(first), float(last)

    def save(self, **changes: Any) -> None:
        """Fields of `about` that change."""
        for name, value in changes.items():
            setattr(self.about, name, value)
        new = self.directory / "about.json.new"
        with new.open("wb") as file:
            file.write(msgspec.json.encode(self.about))
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.directory / "about.json")

    def close(self) -> None:
        for column in (self._tags, self._states, self._good, self._tagged, self._places):
            if column is not None:
                column.close()
        os.close(self._lock)

    def remove(self) -> None:
        """Out of its place at once: what is half removed is no store."""
        gone = self.directory.with_name(f".{self.directory.name}.gone")
        self.directory.rename(gone)
        self.close()
        shutil.rmtree(gone, ignore_errors=True)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_all(parent: Path) -> tuple[list[TagStore], list[str]]:
    """Every store there is, and why some cannot be used. What was cut off while it was built or
    removed is cleared away."""
    stores, errors = list[TagStore](), list[str]()
    for path in sorted(parent.iterdir()) if parent.is_dir() else []:
        if path.name.startswith("."):
            shutil.rmtree(path, ignore_errors=True)
            continue
        if not (path / "about.json").exists():
            continue
        try:
            stores.append(TagStore(path))
        except StoreError as error:
            errors.append(str(error))
    return stores, errors
