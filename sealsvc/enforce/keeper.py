"""The service's connection to the keeper, the process that outlives it (native/keeper).

The keeper owns the fanotify gate, and keeps descriptors by name. What a service leaves behind stays
enforced, and the next service finds it. One service owns a keeper at a time.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.model import FileId
from sealsvc.enforce.keeper_messages import VERSION, KeeperError, KeeperGone, KeeperSocket
from sealsvc.linux.native import ffi, lib

_REPORT = ffi.sizeof("struct seal_report")
_RING_REPORT = ffi.sizeof("struct seal_ring_report")
assert _REPORT != _RING_REPORT, "their sizes tell them apart"


class KeeperOwned(Refusal):
    """Another service owns the keeper."""

    def __init__(self, path: str) -> None:
        super().__init__("io-error", f"another service owns the keeper at {path}")


class Subject(Enum):
    """What a report of the keeper is about."""

    CONFLICT = auto()  # an operation is held, was refused, or has ended its wait
    RING = auto()  # a seal or a command in a ring
    UNVERIFIED = auto()  # an operation waits for the proof that a returned range is not mapped
    TOUCHED = auto()  # an operation on a guarded file was let through


_SUBJECTS = {
    lib.SEAL_REPORT_UNPROVEN: Subject.UNVERIFIED,
    lib.SEAL_REPORT_TOUCHED: Subject.TOUCHED,
}


@dataclass(frozen=True, slots=True)
class WatchedFile:
    """A file that the gate watches. `device` is a dev_t, `block_size` in bytes."""

    device: int
    inode: int
    block_size: int
    reflink: bool
    fd: int  # O_PATH, or a duplicate of the anchor (anchors.py); the caller closes it


@dataclass(frozen=True, slots=True)
class KeptGuard:
    """A guard that the gate has on the file `device`, `inode`; `id` is its token."""

    device: int
    inode: int
    id: int
    policy: int
    backed: bool


class Keeper(KeeperSocket):
    """The requests of a service, or of who looks at what it left. See KeeperSocket for threads and
    errors."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.silent = False  # true while the keeper does not answer (keeper_watch.py)
        self.reports: socket.socket | None = None

    def close(self) -> None:
        """See KeeperSocket."""
        super().close()
        if self.reports is not None:
            self.reports.close()
            self.reports = None

    def own(self) -> None:
        """Become the owner, which gets the reports. Raises KeeperOwned while another service is."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                self.call(lib.KEEPER_OWN, fd=theirs.fileno(), argument=VERSION)
            except BaseException as error:
                ours.close()
                if isinstance(error, KeeperError) and error.errno == errno.EBUSY:
                    raise KeeperOwned(self.path) from None
                raise
        self.reports = ours

    # The gate

    def gate_error(self) -> int:
        """0, or the errno with which this kernel refused the gate."""
        try:
            self.call(lib.KEEPER_GATE)
        except KeeperError as error:
            return error.errno or errno.EIO
        return 0

    def arm(self, fd: int) -> None:
        """Watch the file system of `fd`, so that descriptors opened from now on are seen."""
        self.call(lib.KEEPER_ARM, fd=fd)

    def refuse_overlays(self, fd: int) -> bool:
        """Refuse overlays of unprivileged users on the file system of `fd` from now on. True when
        they were refused already."""
        return self.call(lib.KEEPER_REFUSE_OVERLAYS, fd=fd) > 0

    def overlays_refused(self) -> int:
        """Number of overlay mounts that were refused so far."""
        return self.call(lib.KEEPER_OVERLAYS_REFUSED)

    def watch(self, fd: int, block_size: int, reflink: bool) -> None:
        """Watch the file of `fd`; its file system has blocks of `block_size` bytes."""
        traits = {"block_size": block_size, "reflink": int(reflink)}
        self.call(lib.KEEPER_WATCH, fd=fd, traits=traits)

    def unwatch(self, device: int, inode: int) -> None:
        self.call(lib.KEEPER_UNWATCH, device=device, inode=inode)

    def guard(self, device: int, inode: int, guard: dict[str, int]) -> None:
        """Add or change a guard on a watched file; `guard` has the fields of struct seal_guard."""
        self.call(lib.KEEPER_GUARD, device=device, inode=inode, guard=guard)

    def unguard(self, device: int, inode: int, guard: int) -> None:
        """Remove the guard with this token. Ignored when there is none."""
        with suppress(KeeperError):  # the guard is gone already
            self.call(lib.KEEPER_UNGUARD, device=device, inode=inode, id=guard)

    def in_flight(self, device: int, inode: int) -> int:
        """Number of operations that were let through and may still change the file's map."""
        return self.call(lib.KEEPER_PASSAGES, device=device, inode=inode)

    def own_events(self, device: int, inode: int) -> int:
        """Number of events on the file from processes that pass unjudged, such as the service."""
        return self.call(lib.KEEPER_OWN_EVENTS, device=device, inode=inode)

    def replay(self) -> None:
        """Have the operations that are held reported again."""
        self.call(lib.KEEPER_REPLAY)

    def read_reports(self, seconds: float) -> Iterator[tuple[Subject, Any]]:
        """Yield pending reports in order, each with its subject, for up to `seconds`. A report
        about a ring is a struct seal_ring_report, another a struct seal_report; it is valid until
        the next is taken. Raises KeeperGone."""
        assert self.reports is not None
        room = ffi.new("char[]", max(_REPORT, _RING_REPORT))
        report = ffi.cast("struct seal_report *", room)
        ring_report = ffi.cast("struct seal_ring_report *", room)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                size = self.reports.recv_into(ffi.buffer(room))
            except BlockingIOError:
                return
            if not size:
                raise KeeperGone(self.path)
            if size == _RING_REPORT:
                yield Subject.RING, ring_report
            else:
                yield _SUBJECTS.get(report.kind, Subject.CONFLICT), report

    def snapshot(self) -> tuple[list[WatchedFile], list[KeptGuard]]:
        """All watched files and all guards. The caller closes the descriptors."""
        fds: list[int] = []
        self.call(lib.KEEPER_SNAPSHOT, received=fds)
        try:
            with mmap.mmap(fds[0], 0, access=mmap.ACCESS_READ) as table:
                files, guards = _parse_snapshot(bytes(table))
        finally:
            os.close(fds[0])
        found: list[int] = []
        while len(found) < len(files):
            before = len(found)
            self.call(lib.KEEPER_FILES, id=before, received=found)
            if len(found) == before:
                raise Refusal("internal", "the keeper's files changed while they were listed")
        return [WatchedFile(*file, fd) for file, fd in zip(files, found, strict=True)], guards

    def counters(self) -> dict[str, int]:
        """The gate's counters by name; `waiters` is the number of operations that are held."""
        reply = self.exchange(lib.KEEPER_COUNT)
        names = (
            *("events", "own", "passed", "held", "refused", "failed_answers"),
            *("waiters", "crowded", "lost_looks", "dropped_reports"),
        )
        return {name: int(getattr(reply.counters, name)) for name in names}

    def prover(self, fd: int) -> None:
        """Give the gate the BPF program that tells whether anybody maps a file (proof.bpf.c)."""
        with suppress(KeeperError):  # it has no gate, or its version does not know this
            self.call(lib.KEEPER_PROVER, fd=fd)

    def clear_unverified(self, waiter: int, guard: int) -> None:
        """Clear the range that the held operation `waiter` would change in the registration
        `guard`: it is proven that nothing of it is mapped."""
        with suppress(KeeperError):  # the operation's caller was killed meanwhile
            self.call(lib.KEEPER_ABSOLVE, id=waiter, guard={"id": guard})

    def canary(self, fd: int, trials: int) -> tuple[int, int]:
        """Set the file on which the keeper tries, every second, operations that BPF programs must
        refuse; `trials` is a mask of KEEPER_CANARY_*. -1 ends the trials. Returns how often
        operations on the previous file began to pass, and the mask of the trials that pass now."""
        said = self.call(lib.KEEPER_CANARY_SET, fd=fd, argument=trials)
        return said >> 32, said & 0xFFFFFFFF

    def try_canary(self) -> tuple[int, int]:
        """Try the operations now. Returns how often they began to pass, and the mask of those that
        pass now."""
        said = self.call(lib.KEEPER_CANARY)
        return said >> 32, said & 0xFFFFFFFF

    # Rings

    def ring(
        self,
        op: int,
        *,
        fd: int = -1,
        received: list[int] | None = None,
        file_id: FileId | None = None,
        **fields: Any,
    ) -> int:
        """A request KEEPER_RING_* or KEEPER_SLOT_*, with the fields of struct keeper_ring_request.
        Operations that wait on `file_id` are judged again afterwards."""
        where = {"device": file_id.device, "inode": file_id.inode} if file_id else {}
        ring = {"op": op, **fields}
        return self.call(lib.KEEPER_RING, fd=fd, received=received, ring=ring, **where)

    # Descriptors by name

    def keep(self, name: str, fd: int) -> None:
        """Have the keeper hold a duplicate of `fd`, instead of an earlier one of that name. Raises
        ValueError for a name of KEEPER_NAME bytes or more."""
        self.call(lib.KEEPER_KEEP, fd=fd, name=name)

    def drop(self, name: str) -> None:
        """Have the keeper close a descriptor. Ignored when it has none of that name."""
        with suppress(KeeperError):
            self.call(lib.KEEPER_DROP, name=name)

    def kept(self) -> dict[str, int]:
        """The kept descriptors by name. The caller closes them."""
        found: dict[str, int] = {}
        while True:
            fds: list[int] = []
            names: list[bytes] = []
            total = self.call(lib.KEEPER_KEPT, id=len(found), received=fds, names=names)
            found |= {name.decode(): fd for name, fd in zip(names, fds, strict=True)}
            if len(found) >= total or not fds:
                return found

    # The end

    def leave(self, but: str) -> bool:
        """End the keeper if it has no guard, and no descriptor but the one named `but`. True when
        it ends."""
        return self.call(lib.KEEPER_LEAVE, name=but) == 1

    def release(self) -> None:
        """Release all guards, held operations and kept descriptors, and end the keeper."""
        self.call(lib.KEEPER_RELEASE)


def _parse_snapshot(
    table: bytes,
) -> tuple[list[tuple[int, int, int, bool]], list[KeptGuard]]:
    head = ffi.from_buffer("struct keeper_snapshot *", table)
    at = ffi.sizeof("struct keeper_snapshot")
    files_size = head.files * ffi.sizeof("struct seal_gate_file")
    files = ffi.from_buffer("struct seal_gate_file[]", table[at : at + files_size])
    guards = ffi.from_buffer("struct seal_gate_guard[]", table[at + files_size :])
    return (
        [(f.device, f.inode, f.traits.block_size, bool(f.traits.reflink)) for f in files],
        [
            KeptGuard(g.device, g.inode, g.guard.id, g.guard.policy, bool(g.guard.backed))
            for g in guards
        ],
    )
