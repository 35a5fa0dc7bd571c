"""The lease enforcer: F_WRLCK leases (fcntl(2)), on any kernel.

It keeps exclusive seals only. The lease is on the description that the holder uses, because a write
lease can be taken only while no other description exists. Every open(2) and truncate(2) by others
then waits in the kernel. A lease cannot refuse, it does not tell who waits, and after
fs.lease-break-time (seconds) the kernel lets those who wait continue.

The keeper holds each leased descriptor too, so that a lease outlives the service.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, Fence, FileId, Gap, Kind, Operation, SealTerms
from sealsvc.enforce import openers
from sealsvc.enforce.base import Guard, Hold, Listener, Outcome, RecoveredGuard, Report, Verdict
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.overlay_mounts import OverlayMounts
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.linux.native import ffi, lib

_BREAK_TIME = Path("/proc/sys/fs/lease-break-time")
_MARGIN = 10.0  # seconds a fence and its proof may take
_BATCH = 64


class _Lease:
    """A lease. Owns a duplicate of the holder's descriptor, on which it was taken."""

    anchor: int
    apart = False  # the lease is on the description that the holder uses

    def __init__(self, enforcer: LeaseEnforcer, fd: int, file: FileId, token: int) -> None:
        self.anchor = os.dup(fd)
        self.enforcer, self.file, self.token = enforcer, file, token
        self.waiter = 0

    @property
    def name(self) -> str:
        """The name under which the keeper has its descriptor."""
        return f"lease:{self.token}"

    def change(self, verdict: Verdict) -> None:
        """A lease makes everybody wait, whatever the verdict. With WAIT, a break that began during
        the grant is reported."""
        if verdict is Verdict.WAIT:
            self.enforcer.look(self)

    def resize(self, range: ByteRange) -> None:
        """Nothing to do: a lease holds the whole file."""

    def release(self) -> None:
        if self.anchor >= 0:
            self.enforcer.drop(self)


class LeaseEnforcer:
    """See Enforcer for the methods."""

    name = "lease"
    late = False

    def __init__(self, keeper: Keeper, overlays: OverlayMounts) -> None:
        self.keeper, self._overlays = keeper, overlays
        self._leases: Any = None
        self._held: dict[int, _Lease] = {}
        self._waiters = itertools.count(1)
        self._listener = Listener()

    def probe(self) -> str:
        if self._leases is None:
            out = ffi.new("struct seal_leases **")
            result: int = lib.seal_leases_open(out)
            if result < 0:
                return f"cannot listen for lease breaks: {os.strerror(-result)}"
            self._leases = out[0]
        return ""

    def unable(self, filesystem: Filesystem, terms: SealTerms) -> str:
        if filesystem.unsupported:
            return filesystem.unsupported
        if terms.kind is not Kind.EXCLUSIVE:
            return "leases keep exclusive seals only"
        if terms.conflict is not Conflict.WAIT:
            return "leases make conflicts wait; they cannot refuse"
        if terms.fence is Fence.NONE:
            return "a lease cannot go on refusing after its break time: choose fence signal or kill"
        limit = float(_BREAK_TIME.read_text())
        if limit and terms.grace + _MARGIN > limit:
            return (
                f"grace {terms.grace:g} s and the fence do not fit into fs.lease-break-time"
                f" ({limit:g} s)"
            )
        return ""

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:  # noqa: ARG002 (interface)
        return (
            Gap(
                risk="holder-operations",
                kinds=[Kind.EXCLUSIVE],
                why="a lease does not stop the holder's own descriptor, whoever uses it",
            ),
            *self._overlays.gaps(filesystem),
        )

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:  # noqa: ARG002
        """None: this enforcer stands in front, never behind another."""
        return frozenset()

    def start(self, listener: Listener) -> int:
        self._listener = listener
        return int(lib.seal_leases_fd(self._leases))

    def stop(self) -> None:
        """The leases stay in force: the keeper has their descriptors."""
        for lease in self._held.values():
            os.close(lease.anchor)
        self._held.clear()
        if self._leases is not None:
            lib.seal_leases_close(self._leases)
            self._leases = None

    def arm(self, filesystem: Filesystem, fd: int) -> None:
        """Nothing to do: leases count descriptors whenever they were opened."""

    def verify(self) -> str:
        """Take a lease on a memfd, and check that an open of it would wait."""
        writable = os.memfd_create("sealsvc-canary")
        try:
            fd = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(writable)  # a write lease needs a file that no other description has open
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        except BlockingIOError:
            return ""
        except OSError as error:
            return f"a lease cannot be taken: {error.strerror}; look at the sysctl fs.leases-enable"
        finally:
            os.close(fd)
        return "an open of the service's own file was not held up by a lease"

    def missed(self) -> int:
        return 0

    def forget(self, filesystem: Filesystem | None = None) -> None:
        """Nothing is kept."""

    def hold(self, target: Target, guard: Guard) -> _Lease:
        lease = _Lease(self, target.fd, target.file, guard.token)
        result: int = lib.seal_lease_take(self._leases, lease.anchor)
        if result < 0:
            os.close(lease.anchor)
            raise Refusal(
                "file-in-use",
                f"{target.path}: a lease needs the only descriptor of the file"
                f" ({os.strerror(-result)})",
                {"path": target.path, "pids": openers.pids(target)},
                retry_after=1.0,
            )
        self._held[lease.anchor] = lease
        self.keeper.keep(lease.name, lease.anchor)
        return lease

    def reclaim(self, claims: list[RecoveredGuard], kept: dict[str, int]) -> dict[int, Hold]:
        """See Enforcer. A lease that began to break meanwhile is reported by replay(). A lease that
        belongs to no claim ends with its descriptor, which the caller drops."""
        holds: dict[int, Hold] = {}
        for claim in claims:
            fd = kept.get(f"lease:{claim.guard.token}")
            if fd is None:
                continue
            lease = _Lease(self, fd, claim.file, claim.guard.token)
            if lib.seal_lease_whole(lease.anchor) == 1:
                # A break is signalled to the process that took the lease last: take it again.
                lib.seal_lease_take(self._leases, lease.anchor)
            self._held[lease.anchor] = lease
            holds[claim.guard.token] = lease
        return holds

    def replay(self) -> None:
        for lease in list(self._held.values()):
            self.look(lease)

    def drop(self, lease: _Lease) -> None:
        """Release a lease, and report the end of the wait on it."""
        self._held.pop(lease.anchor, None)
        lib.seal_lease_drop(lease.anchor)
        self.keeper.drop(lease.name)
        os.close(lease.anchor)
        lease.anchor = -1
        if lease.waiter:
            self._listener.conflict(self._report(Outcome.ENDED, lease))

    def drain(self) -> None:
        out = ffi.new("int[]", _BATCH)
        count: int = lib.seal_leases_broken(self._leases, out, _BATCH)
        for fd in out[0:count]:
            chosen = list(self._held.values()) if fd < 0 else [self._held.get(fd)]
            for lease in chosen:
                if lease is not None:
                    self.look(lease)

    def look(self, lease: _Lease) -> None:
        """Report a wait, once, if the lease is being broken."""
        if not lease.waiter and lib.seal_lease_whole(lease.anchor) != 1:
            lease.waiter = next(self._waiters)
            self._listener.conflict(self._report(Outcome.HELD, lease))

    def _report(self, outcome: Outcome, lease: _Lease) -> Report:
        file = FileId(lease.file.device, lease.file.inode, lease.file.generation)
        operation = Operation(
            name="open", offset=0, length=0, pid=0, detail="leases do not tell who waits"
        )
        return Report(outcome, lease.waiter, file, operation, (lease.token,))
