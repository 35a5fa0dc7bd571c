"""The archive of extent maps: what a seal's map was, long after the seal.

Maps lie in segments, each a directory that mmap_ninja's RaggedMmap reads, so that what is old is
deleted a segment at a time. A record is its map's rows behind one row of our own: how many rows,
the seal's id (two words), and a checksum of all that. For RaggedMmap neither tells a torn record
from a whole one nor is appended to in one step: it writes five files and five lengths in turn. So
whoever opens a segment to go on with it looks at every record first, and what is torn is moved
aside, with what is whole copied to its place. Nothing is ever cut off in place: somebody may have
it mapped.

RaggedMmap's first records are written through a mapping, which on a full disk is a SIGBUS, not an
error. So a segment begins with one small record, all of whose files fit into the block that numpy
writes a byte into (with write(2), which can fail) before it maps it. Later ones are written with
write(2).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmap_ninja.ragged import RaggedMmap

from sealsvc.core.extents import ExtentMap
from sealsvc.registry.place import Place

log = logging.getLogger(__name__)

_COLUMNS = 4
_FIRST_ID = "0" * 24  # of the record that a segment begins with

# A segment takes no more than these; the time of an append grows with the number.
_MAPS_PER_SEGMENT = 4096
_BYTES_PER_SEGMENT = 64 << 20

_ROOM = 1 << 20  # bytes that must be free for a new segment


class Archive:
    """Appended to by one thread, read by any. Raises OSError when the disk does not play along."""

    def __init__(
        self,
        directory: Path,
        maps_per_segment: int = _MAPS_PER_SEGMENT,
        bytes_per_segment: int = _BYTES_PER_SEGMENT,
    ) -> None:
        self.directory = directory
        self._most, self._most_bytes = maps_per_segment, bytes_per_segment
        self._lock = threading.Lock()
        self._segment: RaggedMmap | None = None
        self._number = 0
        self._bytes = 0

    def append(self, maps: Sequence[tuple[str, ExtentMap]]) -> list[Place]:
        """Archive maps, each under its seal's id. When it fails, none of them counts as there."""
        records = [_record(seal, map) for seal, map in maps]
        places: list[Place] = []
        with self._lock:
            try:
                while records:
                    segment = self._open()
                    fitting = self._fitting(records, self._most - len(segment))
                    first = len(segment)
                    segment.extend(fitting)
                    self._bytes += sum(record.nbytes for record in fitting)
                    places += [Place(self._number, first + n) for n in range(len(fitting))]
                    del records[: len(fitting)]
            except BaseException:
                # How far it came is found out when it is opened again.
                self._segment = None
                raise
        return places

    def read(self, place: Place, seal: str) -> ExtentMap | None:
        """The map of `seal` there; None when it is not in the archive (any more). Raises OSError.

        Read with pread(2), not through a mapping: a page that cannot be read is an error then, not
        a SIGBUS, and one that does not come holds up nobody else. So there is no lock either: what
        is appended later, deleted or moved aside meanwhile is not what `place` names."""
        path = self._path(place.segment)
        try:
            start, end = (
                int(_numbers(path / name / "data.ninja", np.int64, place.index, 1)[0])
                for name in ("starts", "ends")
            )
            record = _numbers(path / "data.ninja", np.uint64, start, end - start)
        except (FileNotFoundError, ValueError):
            return None
        return _map_of(record, seal)

    def segments(self) -> list[int]:
        """In order of age."""
        names = os.listdir(self.directory) if self.directory.is_dir() else []
        return sorted(int(name) for name in names if name.isdecimal())

    def delete(self, number: int) -> bool:
        """Whole; but not the one that is being appended to."""
        with self._lock:
            if number == self._number and self._segment is not None:
                return False
            # First the name: a segment that is half deleted is not to be taken for one.
            gone = self.directory / f"deleted-{number}"
            self._path(number).rename(gone)
            shutil.rmtree(gone)
        return True

    def age(self, number: int, now: float) -> float:
        """Seconds between its last append and `now`."""
        return now - (self._path(number) / "data.ninja").stat().st_mtime

    def verify(self) -> None:
        """Open the newest segment as one that is gone on with; mend what is torn."""
        with self._lock:
            for name in os.listdir(self.directory) if self.directory.is_dir() else []:
                if name.startswith(("deleted-", "new-")):
                    shutil.rmtree(self.directory / name)
            if numbers := self.segments():
                self._segment = self._again(numbers[-1])

    def close(self) -> None:
        with self._lock:
            self._segment = None

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06}"

    def _open(self) -> RaggedMmap:
        """The segment to append to, with room in it."""
        if self._segment is None and (numbers := self.segments()):
            self._segment = self._again(numbers[-1])
        full = self._segment is not None and (
            len(self._segment) >= self._most or self._bytes >= self._most_bytes
        )
        if self._segment is None or full:
            self._begin()
        return self._segment

    def _begin(self) -> None:
        number = max([*self.segments(), self._number], default=0) + 1
        self._segment = self._make(number, [])
        self._number, self._bytes = number, 0

    def _make(self, number: int, records: list[ExtentMap]) -> RaggedMmap:
        """A segment of `records`, the first of which is made here when there are none; it takes
        its name when it is whole."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        room = os.statvfs(self.directory)
        if room.f_bavail * room.f_frsize < _ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory))
        new = self.directory / f"new-{number}"
        shutil.rmtree(new, ignore_errors=True)
        first = _record(_FIRST_ID, np.empty((0, _COLUMNS), np.uint64))
        segment = RaggedMmap.from_lists(new, [first], mode="r")
        if records[1:]:
            segment.extend(records[1:])
        new.rename(self._path(number))
        return RaggedMmap(self._path(number), mode="r")

    def _again(self, number: int) -> RaggedMmap:
        """A segment that somebody wrote before, of which they may not have written the end."""
        path = self._path(number)
        records, torn = _whole(path)
        if torn:
            aside = self.directory / f"torn-{number:06}-{time.time_ns()}"
            log.warning("%s is torn: kept as %s, %d maps saved", path, aside.name, len(records))
            path.rename(aside)
            segment = self._make(number, records)
        else:
            segment = RaggedMmap(path, mode="r")
        self._number, self._bytes = number, sum(record.nbytes for record in records)
        return segment

    def _fitting(self, records: list[ExtentMap], room: int) -> list[ExtentMap]:
        """At least one: a map may be larger than a segment is meant to be."""
        size, count = self._bytes, 0
        for record in records[:room]:
            size += record.nbytes
            count += 1
            if size >= self._most_bytes:
                break
        return records[:count]


def _numbers(path: Path, kind: type[np.generic], first: int, count: int) -> np.ndarray:
    """`count` numbers of a file from `first` on. ValueError when it has not so many."""
    size = np.dtype(kind).itemsize
    if first < 0 or count < 0:
        raise ValueError(f"{path}: {count} numbers from {first} on")
    with path.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), count * size, first * size)
    if len(data) != count * size:
        raise ValueError(f"{path} is too short")
    return np.frombuffer(data, kind)


def _whole(path: Path) -> tuple[list[ExtentMap], bool]:
    """The records of a segment up to the first that is torn, and whether anything is."""
    try:
        data = np.fromfile(path / "data.ninja", dtype=np.uint64)
        starts = np.fromfile(path / "starts" / "data.ninja", dtype=np.int64)
        ends = np.fromfile(path / "ends" / "data.ninja", dtype=np.int64)
    except OSError:
        return [], True
    records: list[ExtentMap] = []
    at = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=False):
        if start != at or not _sound(data[start:end]):
            break
        records.append(data[start:end])
        at = end
    return records, not records or not _agrees(path, records, at)


def _agrees(path: Path, records: list[ExtentMap], end: int) -> bool:
    """Does every file and every length that RaggedMmap keeps tell of these records alone?"""
    count = len(records)
    sizes = {
        "": (8 * end, (end,)),
        "starts": (8 * count, (count,)),
        "ends": (8 * count, (count,)),
        "flattened_shapes": (8 * count, (count,)),
        "shapes": (8 * count, (count, 1)),
    }
    try:
        for name, (size, shape) in sizes.items():
            if (path / name / "data.ninja").stat().st_size != size:
                return False
            if tuple(np.fromfile(path / name / "shape.ninja", np.uint64).tolist()) != shape:
                return False
        lengths = [len(record) for record in records]
        shapes = np.fromfile(path / "shapes" / "data.ninja", np.int64)
        found = RaggedMmap(path, mode="r")
        return shapes.tolist() == lengths and len(found) == count
    except Exception:  # torn files make it raise anything
        return False


def _record(seal: str, map: ExtentMap) -> ExtentMap:
    """Flat: RaggedMmap keeps the shapes of what has two dimensions in a RaggedMmap again."""
    record = np.empty((len(map) + 1, _COLUMNS), dtype=np.uint64)
    record[0, :3] = _label(len(map), seal)
    record[1:] = map
    record[0, 3] = _checksum(record)
    return record.ravel()


def _label(rows: int, seal: str) -> tuple[int, int, int]:
    number = int(seal, 16)
    return rows, number >> 64, number & (1 << 64) - 1


def _checksum(record: ExtentMap) -> int:
    rows = record.reshape(-1, _COLUMNS)
    digest = hashlib.blake2b(rows[0, :3].tobytes(), digest_size=8)
    digest.update(rows[1:].tobytes())
    return int.from_bytes(digest.digest(), "little")


def _sound(record: ExtentMap) -> bool:
    return (
        len(record) >= _COLUMNS
        and len(record) == (int(record[0]) + 1) * _COLUMNS
        and int(record[3]) == _checksum(record)
    )


def _map_of(record: ExtentMap, seal: str) -> ExtentMap | None:
    if not _sound(record) or tuple(record[:3].tolist()) != _label(int(record[0]), seal):
        return None
    return record.reshape(-1, _COLUMNS)[1:]
