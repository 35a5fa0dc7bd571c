"""Typed access to the keeper's rings (native/ring): the requests that the service makes."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from sealsvc.core import extents
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange, IoMode, State
from sealsvc.core.native_headers import STATES
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.lifecycle.seals import Seal
from sealsvc.linux.native import ffi, lib
from sealsvc.protocol.rings import Attach

NANO = 1_000_000_000  # ns in a second
IO_MODES = {IoMode.READ: lib.SEAL_READ, IoMode.RW: lib.SEAL_RW}
_STATES = {number: state for state, number in STATES.items()}
_COMMANDS = {
    lib.SEAL_CMD_NOP: "nop",
    lib.SEAL_CMD_GRANT: "grant",
    lib.SEAL_CMD_RETURN: "return",
    lib.SEAL_CMD_RENEW: "renew",
    lib.SEAL_CMD_INQUIRE: "inquire",
    lib.SEAL_CMD_MAPPED: "mapped",
    lib.SEAL_CMD_DOWNGRADE: "downgrade",
    lib.SEAL_CMD_SHRINK: "shrink",
    lib.SEAL_CMD_EXTENTS: "extents",
    lib.SEAL_CMD_PROGRESS: "progress",
    lib.SEAL_RING_OPCODES - 1: "other",
}
_COUNTED = ("forwarded", "broken", "dropped", "rung", "spared")


@dataclass(frozen=True, slots=True)
class RingRow:
    """A ring as the keeper has it. `slots` and `used` count slots of its seal table; `grants`,
    `returns`, `recalls` and `commands` are counted since the ring was made."""

    ring: int
    owner: int
    slots: int
    used: int
    secret: int
    grants: int
    returns: int
    recalls: int
    commands: int
    bytes: int  # of shared memory


@dataclass(frozen=True, slots=True)
class FileRow:
    """A registration as the keeper has it. `live` counts the seals in it, `id` is the token of the
    registration's seal; while it is `stale`, no seal is granted in it natively."""

    ring: int
    file: int
    live: int
    stale: bool
    id: int


@dataclass(frozen=True, slots=True)
class RingTable:
    """All rings and registrations. `commands`, by name, and `counters` are totals over all rings
    since the keeper started."""

    rings: list[RingRow]
    files: list[FileRow]
    commands: dict[str, int]
    counters: dict[str, int]


def state_of(word: int) -> tuple[State, int]:
    """State and seqid of a slot's state word (native/libseal/seal_table.h)."""
    return _STATES[word & 0xFF], word >> 32


def moment(seconds: float | None) -> int:
    """Convert seconds of runtime/clock.py (None: no moment) to the ns (0: none) that slots have."""
    return 0 if seconds is None else int(seconds * NANO)


def bytes_of(request: Attach) -> int:
    """Bytes of shared memory that a ring of this shape takes: as lay_out() and make_table() in
    native/ring/memory.c compute them."""
    events = request.events * ffi.sizeof("struct seal_ring_event")
    parts = (1, request.commands, events, request.data)
    table: int = request.slots * ffi.sizeof("struct seal_slot")
    return sum(-(-part // mmap.PAGESIZE) * mmap.PAGESIZE for part in parts) + table


class RingKeeper:
    """The keeper's requests about rings. Those that say so raise KeeperError; the others ignore it,
    because a ring that is gone needs no change."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper

    # Rings

    def create(self, request: Attach, owner: int, secret: int) -> int:
        """Make a ring for the uid `owner`. Returns its number. Raises KeeperError."""
        shape = {
            "slots": request.slots,
            "commands": request.commands,
            "data": request.data,
            "events": request.events,
            "owner": owner,
            "secret": secret,
        }
        return self.keeper.ring(lib.KEEPER_RING_CREATE, shape=shape)

    def descriptors(self, ring: int) -> list[int]:
        """Descriptors for the client: memory, seal table, kick (eventfd) and doorbell (epoll set).
        The caller closes them. Raises KeeperError."""
        fds: list[int] = []
        self.keeper.ring(lib.KEEPER_RING_DESCRIPTORS, ring=ring, received=fds)
        return fds

    def drop(self, ring: int) -> None:
        """End a ring."""
        with suppress(KeeperError):
            self.keeper.ring(lib.KEEPER_RING_DROP, ring=ring)

    def spin(self, microseconds: int) -> None:
        """Set how long the keeper's thread polls rings that are in use before it sleeps. Raises
        KeeperError."""
        self.keeper.ring(lib.KEEPER_RING_SPIN, handle=microseconds)

    def replay(self) -> None:
        """Have undelivered reports sent again, from the slots. Raises KeeperError."""
        self.keeper.ring(lib.KEEPER_RING_REPLAY)

    def list(self) -> RingTable:
        """All rings and registrations. Raises KeeperError, EAGAIN while the keeper does not
        answer."""
        if self.keeper.silent:
            raise KeeperError(errno.EAGAIN, "the keeper does not answer")
        fds: list[int] = []
        self.keeper.ring(lib.KEEPER_RING_LIST, received=fds)
        try:
            table = os.pread(fds[0], os.fstat(fds[0]).st_size, 0)
        finally:
            os.close(fds[0])
        begin = ffi.sizeof("struct keeper_rings")
        head = ffi.from_buffer("struct keeper_rings *", table[:begin])
        at = begin + head.rings * ffi.sizeof("struct seal_ring_row")
        rows = ffi.from_buffer("struct seal_ring_row[]", table[begin:at])
        registered = ffi.from_buffer("struct seal_file_row[]", table[at:])
        counters = head.counters
        return RingTable(
            [
                RingRow(
                    r.ring, r.owner, r.slots, r.used, r.secret, r.grants, r.returns, r.recalls,
                    r.commands, r.bytes,
                )
                for r in rows
            ],
            [
                FileRow(f.ring, f.file, f.live, bool(f.stale), f.id)
                for f in registered[0 : head.files]
            ],
            {name: int(counters.commands[number]) for number, name in _COMMANDS.items()},
            {name: int(getattr(counters, name)) for name in _COUNTED},
        )  # fmt: skip

    # Registrations

    def register(self, ring: int, seal: Seal, *, watched: bool) -> int:
        """Register the seal's file with a ring. Returns the index of the registration. `watched`:
        the gate asks the ring about conflicts with the range. Raises KeeperError."""
        spec = {
            "id": seal.token,
            "start": seal.effective.offset,
            "end": seal.effective.end,
            "grace": int(seal.request.grace * NANO),
            "holder": seal.process.holder.pid,
            "block_size": seal.filesystem.block_size,
            "policy": _policy(seal),
            "iomode": IO_MODES[seal.request.iomode],
            "watched": int(watched),
            "device": seal.file.device,
            "inode": seal.file.inode,
        }
        with _memory(extents.suitable(seal.map, seal.effective)) as fd:
            return self.keeper.ring(lib.KEEPER_RING_REGISTER, ring=ring, registration=spec, fd=fd)

    def channel(self, ring: int, file: int, socket: int) -> None:
        """Have the registration's PI commands passed on to `socket`, the holder's end of a PI
        channel, which the keeper duplicates. Raises KeeperError: EOPNOTSUPP when it is too old."""
        self.keeper.ring(lib.KEEPER_RING_CHANNEL, ring=ring, file=file, fd=socket)

    def unregister(self, ring: int, file: int, state: State) -> None:
        """End a registration; `state` is the one in which it has ended."""
        with suppress(KeeperError):
            self.keeper.ring(lib.KEEPER_RING_UNREGISTER, ring=ring, file=file, state=STATES[state])

    def revalidate(self, seal: Seal) -> None:
        """Give the keeper the registration's map and clear `stale`: seals may be granted in it
        again. Raises KeeperError."""
        place = seal.place
        assert place is not None
        with _memory(extents.suitable(seal.map, seal.effective)) as fd:
            self.keeper.ring(lib.KEEPER_RING_FRESHEN, ring=place.ring, file=place.file, fd=fd)

    def open(self, ring: int, file: int) -> None:
        """Allow grants in the registration again, unless it is stale."""
        with suppress(KeeperError):
            self.keeper.ring(lib.KEEPER_RING_FRESHEN, ring=ring, file=file)

    def close(self, ring: int, file: int, recall: ByteRange) -> None:
        """Stop grants in the registration, and recall its seals that overlap `recall`."""
        with suppress(KeeperError):
            self.keeper.ring(
                lib.KEEPER_RING_CLOSE, ring=ring, file=file, state=1,
                start=recall.offset, end=recall.end,
            )  # fmt: skip

    def is_invalidated(self, ring: int, file: int) -> bool:
        """Whether the registration is stale; True also when the keeper does not know it."""
        try:
            return self.keeper.ring(lib.KEEPER_RING_STALE, ring=ring, file=file) != 0
        except KeeperError:
            return True

    # Seals

    def take_slot(self, ring: int, seal: Seal) -> int:
        """Take a slot of the ring's table for a seal. Returns its number. Raises KeeperError when
        the table is full."""
        return self.keeper.ring(lib.KEEPER_SLOT_TAKE, ring=ring, terms=_terms(seal, _policy(seal)))

    def set_slot(self, seal: Seal, policy: int) -> None:
        """Update the slot from the seal. Ignored if the seal has ended natively already."""
        assert seal.place is not None
        with suppress(KeeperError):
            self.keeper.ring(
                lib.KEEPER_SLOT_SET, ring=seal.place.ring, slot=seal.place.slot,
                terms=_terms(seal, policy), file_id=seal.file,
            )  # fmt: skip

    def untrack(self, seal: Seal) -> None:
        """Make the seal untracked: native code serves it from now on."""
        assert seal.place is not None
        with suppress(KeeperError):
            self.keeper.ring(
                lib.KEEPER_SLOT_QUIET, ring=seal.place.ring, slot=seal.place.slot,
                terms={"id": seal.token}, file_id=seal.file,
            )  # fmt: skip

    def complete(self, ring: int, handle: int, status: int, copied: int = 0) -> None:
        """Answer a forwarded command; `status` is 0, SEAL_RING_AGAIN or a negative errno, `copied`
        the bytes of a copy. Ignored if the command has timed out."""
        with suppress(KeeperError):
            self.keeper.ring(
                lib.KEEPER_RING_COMPLETE, ring=ring, handle=handle, status=status, end=copied
            )

    def tell(self, ring: int, **event: int) -> bool:
        """Put an event (struct seal_ring_event) on the ring. False when that fails."""
        try:
            self.keeper.ring(lib.KEEPER_RING_TELL, ring=ring, event=event)
        except KeeperError:
            return False
        return True


def _policy(seal: Seal) -> int:
    wait = seal.request.conflict == "wait"
    return int(lib.SEAL_POLICY_WAIT if wait else lib.SEAL_POLICY_REFUSE)


def _terms(seal: Seal, policy: int) -> dict[str, Any]:
    return {
        "id": seal.token,
        "offset": seal.range.offset,
        "length": seal.range.length,
        "expires": moment(seal.expires),
        "deadline": moment(seal.deadline),
        "cookie": seal.place.cookie if seal.place else 0,
        "state": STATES[seal.state],
        "seqid": seal.seqid,
        "iomode": IO_MODES[seal.request.iomode],
        "policy": policy,
    }


@contextmanager
def _memory(map: ExtentMap) -> Iterator[int]:
    """A memfd with the rows of an (n, 4) map: struct seal_map_extent."""
    fd = os.memfd_create("sealsvc-map")
    try:
        os.write(fd, np.ascontiguousarray(map, dtype=np.uint64).tobytes())
        yield fd
    finally:
        os.close(fd)
