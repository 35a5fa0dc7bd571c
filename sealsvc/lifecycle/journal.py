"""The journal of live seals: what the next service needs to continue where this one ended.

It is a memfd that the keeper holds too. Seals are state of this boot, so they need no disk, and the
memfd survives a SIGKILL of the service at any instruction. Records are appended, and the tail is
advanced last, so that a record is present completely or not at all. The journal is rewritten when
it has grown to more than four times its size after the last rewriting.

Layout, in native byte order: _MAGIC, tail (u64, bytes from the start), padding to _START, then
records: length (u32, bytes), msgpack. Versions of sealsvc read each other's journals;
docs/upgrade.md has the rules for what may be added.
"""

from __future__ import annotations

import logging
import mmap
import os
import struct
from collections.abc import Callable, Iterable

import msgspec
import numpy as np

from sealsvc.core.model import ByteRange, FileId, Holder, Mark, RingPlace, State
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.native import TOKEN_BASE
from sealsvc.protocol import codec
from sealsvc.protocol.seals import Grant, LadderStep

log = logging.getLogger(__name__)

_MAGIC = b"SEALJRN2"
_TAIL = len(_MAGIC)
_START = 64
_FIRST_SIZE = 1 << 20


class Progress(msgspec.Struct, array_like=True, tag="progress"):
    """The state of a seal. `deadline`, `expires` and `recalled_at` are seconds of CLOCK_BOOTTIME,
    `state_since` is seconds since the epoch."""

    token: int
    state: State
    seqid: int
    reason: str
    state_since: float
    deadline: float | None
    expires: float | None
    recalled_at: float | None = None
    wanted: ByteRange | None = None
    ladder: list[LadderStep] = []
    drifted: bool = False


class Granted(msgspec.Struct, array_like=True, tag="granted"):
    """A seal with its terms and its state. `map` is an (n, 4) array of uint64 (core/extents.py) as
    bytes. Fields may only be added at the end, with a default: an older version ignores them, and a
    newer one uses the default."""

    token: int
    id: str
    request: Grant
    file: FileId
    path: str
    filesystem: Filesystem
    range: ByteRange
    effective: ByteRange
    map: bytes
    enforcers: list[str]
    holder: Holder
    accepted_risks: list[str]
    marked: bool
    granted_at: float
    progress: Progress
    place: RingPlace | None = None
    mark: int = 0
    asker_uid: int = -1
    digest: bytes = b""
    description: Mark = Mark()

    @property
    def known_by(self) -> Mark:
        """The mark of the holder's description. Earlier versions wrote `marked` and `mark` instead
        of `description`: the byte that the description has locked follows from the token of this
        seal (`mark` 0), or of another (`mark`)."""
        if self.marked and self.description == Mark():
            return Mark(byte=TOKEN_BASE + (self.mark or self.token))
        return self.description


class Ended(msgspec.Struct, array_like=True, tag="ended"):
    """The seal has ended, or is not kept by the service any more."""

    token: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Granted | Progress | Ended).decode


class Journal:
    """Appends records. `publish` is called with the memfd each time a new one becomes the journal;
    it hands the keeper a copy. Methods that write raise OSError when memory is short."""

    def __init__(self, publish: Callable[[int], None], live: Iterable[Seal] = ()) -> None:
        self._publish = publish
        self._fd = -1
        self._memory: mmap.mmap | None = None
        self._tail = _START
        self._least = _FIRST_SIZE  # the size after the last rewriting
        self._rewrite(live)

    def granted(self, seal: Seal) -> None:
        """Record a seal completely: a new one, or one whose terms have changed."""
        self._append(codec.encoded(_granted(seal), _encode))

    def progressed(self, seal: Seal) -> None:
        """Record a seal's state, or its end if it is not live any more."""
        record = _progress(seal) if seal.live else Ended(seal.token)
        self._append(codec.encoded(record, _encode))

    def forget(self, seal: Seal) -> None:
        """Record that the service no longer keeps a seal that is still live."""
        self._append(_encode(Ended(seal.token)))

    def rewrite_if_large(self, live: Iterable[Seal]) -> None:
        """Rewrite the journal with the `live` seals alone, once most of it is out of date. An
        OSError is logged, and the journal stays as it is."""
        if self._tail > 4 * self._least:
            try:
                self._rewrite(live)
            except OSError as error:
                log.warning("the journal stays as long as it is: %s", error)

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            os.close(self._fd)
            self._memory = None

    def _rewrite(self, live: Iterable[Seal]) -> None:
        records = b"".join(_framed(codec.encoded(_granted(seal), _encode)) for seal in live)
        tail = _START + len(records)
        size = max(_FIRST_SIZE, tail)
        fd = os.memfd_create("sealsvc-journal")
        try:
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size)
            memory[:_START] = (_MAGIC + struct.pack("=Q", tail)).ljust(_START, b"\0")
            memory[_START:tail] = records
            self._publish(fd)  # until this returns, the old memfd is the journal
        except BaseException:
            os.close(fd)
            raise
        self.close()
        self._fd, self._memory, self._tail = fd, memory, tail
        self._least = max(_FIRST_SIZE // 4, tail)

    def _append(self, record: bytes) -> None:
        framed = _framed(record)
        end = self._tail + len(framed)
        assert self._memory is not None
        if end > len(self._memory):
            size = max(end, 2 * len(self._memory))
            os.ftruncate(self._fd, size)
            self._memory.resize(size)
        self._memory[self._tail : end] = framed
        struct.pack_into("=Q", self._memory, _TAIL, end)
        self._tail = end


def _framed(record: bytes) -> bytes:
    return struct.pack("=I", len(record)) + record


def read(fd: int) -> list[Granted]:
    """The seals that were live when the journal's writer ended, each with its last state. Raises
    ValueError if another, incompatible version wrote it."""
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as memory:
        if memory[:_TAIL] != _MAGIC:
            raise _unlike("its format is another")
        (tail,) = struct.unpack_from("=Q", memory, _TAIL)
        live: dict[int, Granted] = {}
        # Share equal values: there are few for many seals.
        filesystems: dict[Filesystem, Filesystem] = {}
        files: dict[FileId, FileId] = {}
        paths: dict[str, str] = {}
        at = _START
        while at < tail:
            (size,) = struct.unpack_from("=I", memory, at)
            data = memory[at + 4 : at + 4 + size]
            record = codec.decoded(_understood(data), data)
            at += 4 + size
            match record:
                case Granted():
                    found = filesystems.setdefault(record.filesystem, record.filesystem)
                    record.filesystem = found
                    record.file = files.setdefault(record.file, record.file)
                    record.path = paths.setdefault(record.path, record.path)
                    live[record.token] = record
                case Progress():
                    live[record.token].progress = record
                case Ended():
                    del live[record.token]
    return list(live.values())


def _understood(data: bytes) -> Granted | Progress | Ended:
    """Decode a record. Raises ValueError for one that only another version knows: ignoring it could
    keep a seal on other terms than those it was granted on."""
    try:
        record: Granted | Progress | Ended = _decode(data)
    except msgspec.ValidationError as error:
        raise _unlike(str(error)) from error
    return record


def _unlike(reason: str) -> ValueError:
    return ValueError(
        f"the seals that are kept are of another version of sealsvc ({reason}): start that version"
        " and have them back with `sealctl recall --all --wait`, or let them go with"
        " `sealsvc release --all`"
    )


def map_of(record: Granted) -> np.ndarray[tuple[int, int], np.dtype[np.uint64]]:
    """The extent map of a record: a read-only (n, 4) array (core/extents.py)."""
    return np.frombuffer(record.map, dtype=np.uint64).reshape(-1, 4)


def _progress(seal: Seal) -> Progress:
    return Progress(
        token=seal.token,
        state=seal.state,
        seqid=seal.seqid,
        reason=seal.reason,
        state_since=seal.state_since,
        deadline=seal.deadline,
        expires=seal.expires,
        recalled_at=seal.recalled_at,
        wanted=seal.wanted,
        ladder=seal.ladder,
        drifted=seal.drifted,
    )


def _granted(seal: Seal) -> Granted:
    return Granted(
        token=seal.token,
        id=seal.id,
        request=seal.request,
        file=seal.file,
        path=seal.path,
        filesystem=seal.filesystem,
        range=seal.range,
        effective=seal.effective,
        map=np.ascontiguousarray(seal.map).tobytes(),
        enforcers=seal.enforcers,
        holder=seal.process.holder,
        accepted_risks=seal.accepted_risks,
        # Earlier versions assume that the description of a seal without a mark still exists.
        marked=bool(seal.mark.byte),
        granted_at=seal.granted_at,
        progress=_progress(seal),
        place=seal.place,
        mark=seal.mark.byte - TOKEN_BASE if seal.mark.byte else 0,
        asker_uid=seal.asker_uid,
        digest=seal.digest,
        description=seal.mark,
    )
