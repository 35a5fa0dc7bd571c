"""What the service needs of the system beneath it. `kernel` is the real one, `sim` lives in memory.

Everything here may block and is called from worker threads, never from the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sealsvc.core.model import ByteRange, FileId, Gap, Mark, Preparation, Requirements
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.processes import Process

ExtentMap = NDArray[np.uint64]
Progress = Callable[[str, float], None]

UNSEEN_REFERENCES = "page-references"  # a risk: see docs/fencing.md


@dataclass(slots=True)
class Target:
    """A file to be sealed, and the one description of it that its holder uses. `fd` is owned by
    whoever holds the Target."""

    file: FileId
    fd: int
    path: str
    size: int
    filesystem: Filesystem
    writable: bool


@dataclass(frozen=True, slots=True)
class RemainingMapping:
    """Something that is left of a hold on a range, or may be."""

    range: ByteRange
    pid: int = 0  # of the process that maps the range; 0: its pages are referenced otherwise
    why: str = ""  # nothing is known of that process, for this reason

    def __str__(self) -> str:
        if not self.pid:
            return f"pages of {self.range} are referenced, by I/O under way or by a pipe"
        if self.why:
            return f"process {self.pid} may map {self.range}: its maps cannot be read ({self.why})"
        return f"process {self.pid} maps {self.range}"


@dataclass(frozen=True, slots=True)
class ReleaseQuestion:
    """Is anything left of a holder's hold on a range? `anchor` is a descriptor of the file (-1:
    there is none), of a description `apart` from the holder's or of that very one. The holder's is
    known by its `mark`; `holder` is its pid (0: gone). `sealed` has the ranges that processes have
    sealed by other seals: what they map there is kept by those. `map` is where the range lies on
    its device; with `unseen`, that page references cannot be seen is an accepted risk. Of an
    `exclusive` seal's file nobody else has a mapping: whoever maps it has that from the holder, by
    whatever description."""

    file: FileId
    range: ByteRange
    anchor: int
    apart: bool
    mark: Mark
    holder: int
    sealed: dict[int, list[ByteRange]]
    map: ExtentMap
    unseen: bool
    exclusive: bool


@dataclass(frozen=True, slots=True)
class MappingQuestion:
    """Does process `pid` map the range as it must? `address` is where its first byte stands (None:
    anywhere), `map` the recorded one, `anchor` a descriptor of the file (-1: there is none)."""

    file: FileId
    range: ByteRange
    anchor: int
    map: ExtentMap
    pid: int
    address: int | None
    require: Requirements


@dataclass(frozen=True, slots=True)
class MappingFacts:
    """What was found of a mapping that is as it must be: fields as in messages.MappingReport."""

    vmas: int
    pages: int
    present: int
    huge_pages: int
    pfn_checked: int
    method: str
    dax: bool
    notes: list[str]


class Comparison(Protocol):
    """Present maps against recorded ones, of ranges of files of one file system."""

    def next_changed(self, start: int) -> tuple[int, ExtentMap | None]:
        """The index of the first range from `start` on whose map may not be the recorded one, and
        its present map (None: it was not read); the number of ranges and None when there is
        none."""
        ...


class Host(Protocol):
    simulated: bool

    def open_path(self, path: str, roots: Sequence[str], *, writable: bool) -> Target: ...

    def adopt(self, fd: int, *, writable: bool) -> Target:
        """Take over a descriptor that a client opened. When it cannot be used it stays the
        caller's, who knows where closing it may block."""
        ...

    def identify(self, path: str, roots: Sequence[str] | None = None) -> FileId:
        """The file or directory at a path. With `roots` it must be one of them or lie below one,
        reached from there by no symbolic link. Raises Refusal."""
        ...

    def filesystems(self, roots: Sequence[str]) -> list[Filesystem]: ...

    def region_of(self, device: int) -> tuple[int, int] | None:
        """The physical address and the length of a file system's device; None where it is not
        persistent memory, or not in one piece."""
        ...

    def refuse_if_unkeepable(self, target: Target, *, exclusive: bool) -> None: ...

    def refuse_if_overlaid(
        self, target: Target, *, exclusive: bool, anywhere: bool = False
    ) -> None:
        """An overlay would reach the file past the enforcers. For an exclusive seal, what cannot be
        known is refused too; `anywhere`: as in Overlays.refuse_if_upper."""
        ...

    def prepare(
        self,
        target: Target,
        sealed: ByteRange,
        steps: Sequence[Preparation],
        progress: Progress,
    ) -> None: ...

    def settle(self, target: Target) -> None:
        """Bring what is pending on the file to the device, so that its map can be read."""
        ...

    def steady(self, target: Target) -> None:
        """Take away what could still move blocks of the file, whose map is fit to be sealed."""
        ...

    def read_map(self, fd: int, sealed: ByteRange | None) -> ExtentMap: ...

    def look(self, anchor: int, file: FileId, sealed: ByteRange | None) -> ExtentMap:
        """The map of a sealed file as it is now (without `sealed`: nothing of it), if its file
        system is still alive. `anchor` may be closed by others meanwhile."""
        ...

    def comparison(
        self,
        device: int,
        anchors: Sequence[int],
        inodes: Sequence[int],
        ranges: Sequence[ByteRange],
        maps: Sequence[ExtentMap],
    ) -> Comparison:
        """Of the files `inodes` on `device`, each with an anchor, range and recorded map."""
        ...

    def gaps(self, target: Target) -> tuple[Gap, ...]:
        """What cannot be proven here about the end of a seal, as risks to accept."""
        ...

    def mark(self, fd: int, token: int, *, sole: bool) -> Mark:
        """Make the description of `fd` one that is known again, so that remaining_mappings() can
        tell whether it is gone. `sole`: nobody else may open the file, so that whatever maps it
        counts. Raises Refusal (file-in-use)."""
        ...

    def is_left(self, anchor: int, mark: Mark) -> bool:
        """Is the marked description, another one than the anchor's, there still?"""
        ...

    def is_free(self, question: ReleaseQuestion) -> bool:
        """Is it known, without a look at processes, that nobody but the service maps the file? The
        cheapest proof there is that nothing is left of a holder, and the only call here that never
        blocks."""
        ...

    def remaining_mappings(self, question: ReleaseQuestion) -> list[RemainingMapping]:
        """What still maps the range through the marked description, or in the process `holder`, and
        whether its pages are referenced where the kernel does not wait for that. Empty is a proof
        that nothing is left."""
        ...

    def writable_mappings(self, question: ReleaseQuestion) -> list[RemainingMapping]:
        """What the process `holder` maps of the range that it can write through, or may."""
        ...

    def has_dax(self, file: str | int) -> bool:
        """Is the file, a path or a descriptor, mapped without a page cache between?"""
        ...

    def validate(self, question: MappingQuestion) -> MappingFacts:
        """Raises Refusal (mapping-invalid) with the first byte that is not mapped as it must be."""
        ...

    def process(self, pid: int) -> Process: ...
