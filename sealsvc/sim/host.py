"""A system in memory: files are memfds, their extent maps are made up, processes are real."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import EXTENT_LAST
from sealsvc.core.model import ByteRange, FileId, Gap, Mark, Preparation
from sealsvc.linux import native, processes
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import (
    Comparison,
    ExtentMap,
    MappingFacts,
    MappingQuestion,
    Progress,
    ReleaseQuestion,
    RemainingMapping,
    Target,
)
from sealsvc.linux.processes import Process

DEVICE = 0xFF00
ROOT_INODE = 1
DEFAULT_SIZE = 64 << 20
EXTENT = 16 << 20
PAGE = 4096
STEPS = frozenset({"open", "prepare", "settle", "read-map", "mark", "arm"})
FILESYSTEM = Filesystem(
    mount="/sim", type="xfs", source="/dev/sim", options="rw", device=DEVICE, reflink=True
)


@dataclass(slots=True)
class _File:
    id: FileId
    fd: int  # the memfd; open as long as the host lives
    moved: dict[int, int] = field(default_factory=dict)  # extent index -> times it moved
    mappers: dict[int, int] = field(default_factory=dict)  # pid -> pidfd; -1: made up


@dataclass(frozen=True, slots=True)
class _NoComparison:
    """There is nothing to compare natively: each map is to be read by itself."""

    count: int

    def next_changed(self, start: int) -> tuple[int, ExtentMap | None]:
        return min(start, self.count), None


class SimHost:
    simulated = True

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._files: dict[str, _File] = {}
        self._inodes: dict[tuple[int, int], _File] = {}  # by the memfd's st_dev and st_ino
        self._failures: dict[str, tuple[int, int]] = {}  # step -> errno, times

    # The Host protocol

    def open_path(self, path: str, roots: Sequence[str], *, writable: bool) -> Target:
        path = _beneath(path, roots)
        self.check("open")
        with self._lock:
            if self._is_directory(path):
                raise Refusal("not-a-regular-file", f"{path} is a directory", {"path": path})
            file = self._file(path)
        mode = os.O_RDWR if writable else os.O_RDONLY
        fd = os.open(f"/proc/self/fd/{file.fd}", mode | os.O_CLOEXEC)
        return self._target(file, fd, path, writable=writable)

    def adopt(self, fd: int, *, writable: bool) -> Target:
        self.check("open")
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == os.O_WRONLY or (writable and mode != os.O_RDWR):
            raise Refusal("bad-request", "the descriptor's mode does not allow the iomode")
        file = self._of_fd(fd)
        with self._lock:
            path = next(path for path, other in self._files.items() if other is file)
        return self._target(file, fd, path, writable=mode == os.O_RDWR)

    def identify(self, path: str, roots: Sequence[str] | None = None) -> FileId:  # noqa: ARG002
        path = os.path.normpath(path)
        with self._lock:
            if file := self._files.get(path):
                return file.id
            if path == FILESYSTEM.mount or self._is_directory(path):
                return FileId(DEVICE, ROOT_INODE)
        raise Refusal("no-such-file", f"{path} does not exist", {"path": path})

    def filesystems(self, roots: Sequence[str]) -> list[Filesystem]:
        return [FILESYSTEM] if roots else []

    def region_of(self, device: int) -> tuple[int, int] | None:  # noqa: ARG002 (the interface)
        return None

    def refuse_if_unkeepable(self, target: Target, *, exclusive: bool) -> None:
        """Everything can be kept here."""

    def refuse_if_overlaid(
        self, target: Target, *, exclusive: bool, anywhere: bool = False
    ) -> None:
        """There are no overlays here."""

    def prepare(
        self,
        target: Target,  # noqa: ARG002 (the interface)
        sealed: ByteRange,  # noqa: ARG002
        steps: Sequence[Preparation],
        progress: Progress,
    ) -> None:
        self.check("prepare")
        for step in steps:
            progress(str(step), 1.0)

    def settle(self, target: Target) -> None:  # noqa: ARG002 (the interface)
        self.check("settle")

    def steady(self, target: Target) -> None:
        """Nothing moves here but by drift()."""

    def look(self, anchor: int, file: FileId, sealed: ByteRange | None) -> ExtentMap:  # noqa: ARG002
        return self.read_map(anchor, sealed)

    def comparison(
        self,
        device: int,  # noqa: ARG002 (there is one)
        anchors: Sequence[int],  # noqa: ARG002
        inodes: Sequence[int],  # noqa: ARG002
        ranges: Sequence[ByteRange],  # noqa: ARG002
        maps: Sequence[ExtentMap],
    ) -> Comparison:
        return _NoComparison(len(maps))

    def read_map(self, fd: int, sealed: ByteRange | None) -> ExtentMap:
        self.check("read-map")
        file = self._of_fd(fd)
        size = os.fstat(file.fd).st_size
        block = FILESYSTEM.block_size
        end = -(-size // block) * block
        starts = range(0, end, EXTENT)
        with self._lock:
            rows = [
                (
                    start,
                    # A gap behind each extent leaves it somewhere to move to.
                    (file.id.inode << 44) + start * 2 + file.moved.get(index, 0) % 2 * EXTENT,
                    min(EXTENT, end - start),
                    EXTENT_LAST if start == starts[-1] else 0,
                )
                for index, start in enumerate(starts)
            ]
        if sealed is not None:
            rows = [r for r in rows if r[0] < sealed.end and sealed.offset < r[0] + r[2]]
        return np.array(rows, dtype=np.uint64).reshape(-1, 4)

    def gaps(self, target: Target) -> tuple[Gap, ...]:  # noqa: ARG002 (the interface)
        return ()

    def mark(self, fd: int, token: int, *, sole: bool) -> Mark:  # noqa: ARG002 (the interface)
        self.check("mark")
        return Mark()

    def is_left(self, anchor: int, mark: Mark) -> bool:  # noqa: ARG002 (the interface)
        return True

    def is_free(self, question: ReleaseQuestion) -> bool:  # noqa: ARG002 (the interface)
        return False

    def remaining_mappings(self, question: ReleaseQuestion) -> list[RemainingMapping]:
        q = question
        return [
            RemainingMapping(part, pid)
            for pid in self._mappers(q.file)
            for part in q.range.without_all(q.sealed.get(pid, []))
        ]

    def writable_mappings(self, question: ReleaseQuestion) -> list[RemainingMapping]:
        """A simulated mapping is writable."""
        return [r for r in self.remaining_mappings(question) if r.pid == question.holder]

    def has_dax(self, file: str | int) -> bool:  # noqa: ARG002 (the interface)
        """What is required can be had here."""
        return True

    def validate(self, question: MappingQuestion) -> MappingFacts:
        """A simulated mapping has everything that was required, wherever it is said to be."""
        q = question
        if q.pid not in self._mappers(q.file):
            raise Refusal(
                "mapping-invalid",
                f"process {q.pid} does not map the file (simulated)",
                {
                    "check": "coverage",
                    "offset": q.range.offset,
                    "address": q.address,
                    "expected": "a mapping of the file",
                    "found": "none",
                },
            )
        pages = q.range.rounded(PAGE).length // PAGE
        return MappingFacts(1, pages, pages, 0, pages, "simulated", True, ["simulated"])

    def process(self, pid: int) -> Process:
        return processes.by_pid(pid)

    # The script

    def create(self, path: str, size: int = DEFAULT_SIZE) -> FileId:
        """A new file of `size` bytes; one that is there gets that size."""
        with self._lock:
            file = self._file(os.path.normpath(path))
            os.ftruncate(file.fd, size)
            return file.id

    def drift(self, path: str, offset: int = 0) -> None:
        """Move the extent at `offset`: what a seal promises not to happen."""
        with self._lock:
            file = self._known(path)
            if not 0 <= offset < os.fstat(file.fd).st_size:
                raise Refusal("beyond-eof", f"{path} has no extent at {offset}")
            index = offset // EXTENT
            file.moved[index] = file.moved.get(index, 0) + 1

    def map(self, path: str, pid: int) -> None:
        """Until it is unmapped or the process ends. One that is made up never does."""
        with self._lock:
            self.unmap(path, pid)
            mappers = self._known(path).mappers
            mappers[pid] = -1
            with suppress(OSError):
                mappers[pid] = native.pidfd_open(pid)

    def unmap(self, path: str, pid: int) -> None:
        with self._lock:
            _close(self._known(path).mappers.pop(pid, -1))

    def fail(self, step: str, error: int, times: int = 1) -> None:
        """Have the next `times` calls of `step` fail with the errno."""
        if step not in STEPS or error not in errno.errorcode or times < 0:
            raise Refusal(
                "bad-request", f"fail: step is one of {', '.join(sorted(STEPS))}; errno is known"
            )
        with self._lock:
            self._failures[step] = (error, times)

    def check(self, step: str) -> None:
        """Raise the failure that the script has for this step."""
        with self._lock:
            error, times = self._failures.get(step, (0, 0))
            if times <= 0:
                return
            self._failures[step] = (error, times - 1)
        raise Refusal(
            "io-error",
            f"simulated failure of {step}: {os.strerror(error)}",
            {"step": step, "errno": error},
        )

    def anchor(self, file: FileId) -> int:
        """The host's own descriptor of a file; it stays open until close()."""
        with self._lock:
            return next(f.fd for f in self._files.values() if f.id == file)

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                os.close(file.fd)
                for pidfd in file.mappers.values():
                    _close(pidfd)
            self._files.clear()
            self._inodes.clear()

    def _mappers(self, file: FileId) -> list[int]:
        with self._lock:
            found = [f for f in self._files.values() if f.id == file]
            return sorted(
                pid for f in found for pid, pidfd in f.mappers.items() if not _has_ended(pidfd)
            )

    def _file(self, path: str) -> _File:
        if found := self._files.get(path):
            return found
        fd = os.memfd_create(os.path.basename(path)[:200] or "sim")
        os.ftruncate(fd, DEFAULT_SIZE)
        st = os.fstat(fd)
        file = _File(FileId(DEVICE, ROOT_INODE + 1 + len(self._files)), fd)
        self._files[path] = self._inodes[st.st_dev, st.st_ino] = file
        return file

    def _known(self, path: str) -> _File:
        file = self._files.get(os.path.normpath(path))
        if file is None:
            raise Refusal("no-such-file", f"{path} does not exist", {"path": path})
        return file

    def _is_directory(self, path: str) -> bool:
        return any(known.startswith(path.rstrip("/") + "/") for known in self._files)

    def _of_fd(self, fd: int) -> _File:
        st = os.fstat(fd)
        with self._lock:
            file = self._inodes.get((st.st_dev, st.st_ino))
        if file is None:
            raise Refusal("filesystem-unsupported", "the descriptor is not of a simulated file")
        return file

    def _target(self, file: _File, fd: int, path: str, *, writable: bool) -> Target:
        return Target(file.id, fd, path, os.fstat(fd).st_size, FILESYSTEM, writable)


def _has_ended(pidfd: int) -> bool:
    if pidfd < 0:
        return False
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _close(pidfd: int) -> None:
    if pidfd >= 0:
        os.close(pidfd)


def _beneath(path: str, roots: Sequence[str]) -> str:
    if not os.path.isabs(path):
        raise Refusal("bad-request", f"the path {path!r} is not absolute", {"path": path})
    path = os.path.normpath(path)
    for root in roots:
        if path != root and os.path.commonpath([path, root]) == root:
            return path
    raise Refusal(
        "outside-roots",
        f"{path} is not below an allowed root",
        {"path": path, "roots": list(roots)},
    )
