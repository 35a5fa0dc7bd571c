"""The value types that all modules use: ranges, kinds, states. Immutable; no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta


class Kind(StrEnum):
    """shared: many holders, anyone may read and write data in place.
    exclusive: nobody but the holder may open the file."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


class IoMode(StrEnum):
    """layoutiomode4 of RFC 8881 section 3.3.20."""

    READ = "read"
    RW = "rw"


class Conflict(StrEnum):
    """What a conflicting operation meets: it waits while the seal is recalled, or gets ETXTBSY."""

    WAIT = "wait"
    REFUSE = "refuse"


class Fence(StrEnum):
    """How far the fence may go against a holder that misses the recall's deadline: `none` keeps
    the seal and refuses conflicts, `signal` sends SIGTERM, `kill` SIGTERM and then SIGKILL."""

    NONE = "none"
    SIGNAL = "signal"
    KILL = "kill"


DEFAULT_GRACE = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class SealTerms:
    """What decides which enforcers can keep a seal. `grace`: seconds between a recall and its
    deadline."""

    kind: Kind
    conflict: Conflict = Conflict.WAIT
    fence: Fence = Fence.NONE
    grace: float = DEFAULT_GRACE


class FenceClass(StrEnum):
    """What can be done, at the worst, against a holder that keeps its seal (docs/fencing.md)."""

    COOPERATIVE = "cooperative"
    SIGNAL = "signal"
    KILL = "kill"


class Preparation(StrEnum):
    """What the service may do to the file before it is sealed."""

    ALLOCATE = "allocate"
    CONVERT = "convert"
    UNSHARE = "unshare"
    ALIGN = "align"


class State(StrEnum):
    REQUESTED = "requested"
    GRANTED = "granted"
    ACTIVE = "active"
    COURTESY = "courtesy"
    RECALLED = "recalled"
    FENCING = "fencing"
    FENCE_FAILED = "fence-failed"
    ORPHANED = "orphaned"
    LOST = "lost"
    RETURNED = "returned"
    REVOKED = "revoked"
    EXPIRED = "expired"
    REFUSED = "refused"


class ByteRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[offset, offset + length) in bytes; never empty. What clients send is held to the bounds."""

    offset: Annotated[int, Meta(ge=0, le=2**62)]
    length: Annotated[int, Meta(ge=1, le=2**62)]

    @property
    def end(self) -> int:
        return self.offset + self.length

    def overlaps(self, other: ByteRange) -> bool:
        return self.offset < other.end and other.offset < self.end

    def rounded(self, granule: int) -> ByteRange:
        """The smallest range of whole granules (bytes, a power of two) that contains this one."""
        start = self.offset & -granule
        end = (self.end + granule - 1) & -granule
        return ByteRange(start, end - start)

    def clipped(self, other: ByteRange) -> ByteRange | None:
        """The intersection; None when it is empty."""
        start, end = max(self.offset, other.offset), min(self.end, other.end)
        return ByteRange(start, end - start) if start < end else None

    def hull(self, other: ByteRange) -> ByteRange:
        """The smallest range that contains both."""
        start = min(self.offset, other.offset)
        return ByteRange(start, max(self.end, other.end) - start)

    def without(self, part: ByteRange) -> ByteRange | None:
        """The rest when a part at one end is removed; None when nothing is left. Raises ValueError
        when the part is not at an end, or reaches outside."""
        if part.length <= 0 or part.offset < self.offset or part.end > self.end:
            raise ValueError("it is not inside")
        if part == self:
            return None
        if part.offset == self.offset:
            return ByteRange(part.end, self.end - part.end)
        if part.end == self.end:
            return ByteRange(self.offset, part.offset - self.offset)
        raise ValueError("it is in the middle: what is left would be two ranges")

    def without_all(self, parts: Iterable[ByteRange]) -> list[ByteRange]:
        """The rest when all parts are removed, wherever they are; in order."""
        left, at = list[ByteRange](), self.offset
        for part in sorted(parts, key=lambda part: part.offset):
            if at < min(part.offset, self.end):
                left.append(ByteRange(at, min(part.offset, self.end) - at))
            at = max(at, part.end)
        if at < self.end:
            left.append(ByteRange(at, self.end - at))
        return left

    def __str__(self) -> str:
        return f"{self.offset}:{self.length}"


class FileId(msgspec.Struct, frozen=True, forbid_unknown_fields=True, order=True):
    """Who a file is while the service keeps a descriptor of it open: the inode cannot be reused
    meanwhile, so device and inode number name one file. `generation` (FS_IOC_GETVERSION) tells a
    reused inode number apart in records that outlive the descriptor."""

    device: int
    inode: int
    generation: int = 0

    def same_inode(self, other: FileId) -> bool:
        """Whether both name the same inode. Generations are ignored, because one may be missing
        (0)."""
        return (self.device, self.inode) == (other.device, other.inode)

    def __str__(self) -> str:
        return f"{self.device >> 8 & 0xFFF}:{self.device & 0xFF}/{self.inode}.{self.generation}"


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """How the description of a holder is known again: by addresses of the kernel's structures
    (never for users to see), or by the byte that it has locked. 0: not by this."""

    file: int = 0
    cred: int = 0
    byte: int = 0


class RingPlace(msgspec.Struct, frozen=True):
    """Where a client's ring has a seal. `file` is a registered file's index (-1: none), `slot` one
    of the seal table (-1: it is a registration), `parent` the token of the registration that a seal
    was granted in (0: it was granted over the control socket). `watched`: the gate leaves the
    registered range to the ring to judge, `cookie` is the client's."""

    ring: int
    file: int = -1
    slot: int = -1
    parent: int = 0
    watched: bool = False
    cookie: int = 0

    @property
    def is_registration(self) -> bool:
        return self.slot < 0

    @property
    def key(self) -> int:
        """The number by which the gate knows a registration (seal_ring_key)."""
        return self.ring << 32 | self.file


class Operation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A conflicting operation, as its caller is stopped in it. `length` 0 means up to the end of
    the file; for truncate `offset` is the new size."""

    name: str
    offset: int
    length: int
    pid: int
    tid: int = 0
    comm: str = ""
    uid: int = -1
    detail: str = ""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """`start_time` is field 22 of /proc/PID/stat, in clock ticks since boot: with the pid it names
    one process of this boot."""

    pid: int
    start_time: int
    uid: int
    comm: str


class Requirements(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the holder's mapping must be; checked when it is validated (fsdax only). `populate` asks
    whether the pages are there, not whether they may be accessed: mapped PROT_NONE they pass. A
    guard region (MADV_GUARD_INSTALL, since Linux 6.13) is no page that is there: `populate` finds
    it, and without `populate` it passes."""

    map_sync: bool = False
    populate: bool = False
    pmd: bool = False


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """A known hole in coverage: `risk` is the name policy.accept_risks takes."""

    risk: str
    kinds: list[Kind]
    why: str


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """The first place at which a seal's map is not as recorded."""

    seal: str
    path: str
    logical: int
    expected: str
    found: str
