"""The fanotify enforcer: pre-content events (Linux 6.14+), answered by the gate in the keeper.

It sees operations through a watched descriptor or a path. A descriptor is watched if it was opened
after its file system was armed; `hold` proves for each file that no other descriptor exists. The
gate continues to judge while no service is running; `reclaim` takes over its guards.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from sealsvc.core import rules
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId, Kind, Operation
from sealsvc.enforce import anchors, guards, openers
from sealsvc.enforce.base import (
    DRAIN_TIME,
    Claim,
    Guard,
    Hold,
    Listener,
    Outcome,
    Report,
    Verdict,
)
from sealsvc.enforce.keeper import Keeper, Subject
from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.enforce.overlay_mounts import OverlayMounts
from sealsvc.linux import native
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.linux.native import ffi, lib
from sealsvc.protocol.seals import Grant
from sealsvc.protocol.system import Gap

# Verdicts of guards that reports do not name: a grant is being made, or a registration decides.
_UNTOLD = (Verdict.ARMING, Verdict.WATCH)
_VERDICTS = {policy: verdict for verdict, policy in guards.POLICIES.items()}
_OUTCOMES = {
    lib.SEAL_REPORT_HELD: Outcome.HELD,
    lib.SEAL_REPORT_REFUSED: Outcome.REFUSED,
    lib.SEAL_REPORT_ENDED: Outcome.ENDED,
}

_UNKNOWN = (lib.SEAL_OP_HIDDEN, lib.SEAL_OP_OPEN_HIDDEN, lib.SEAL_OP_WRITE_UNKNOWN)

_SHARED = [Kind.SHARED]
_BOTH = [Kind.SHARED, Kind.EXCLUSIVE]
_GAPS = {
    "ext4": (
        Gap(
            risk="ext4-move-ext",
            kinds=_SHARED,
            why="EXT4_IOC_MOVE_EXT (e4defrag) on a writable descriptor raises no event",
        ),
        Gap(
            risk="ext4-swap-boot",
            kinds=_SHARED,
            why="EXT4_IOC_SWAP_BOOT by a privileged program raises no event",
        ),
        Gap(
            risk="ext4-inode-flags",
            kinds=_SHARED,
            why="chattr +j and -e (FS_IOC_SETFLAGS, EXT4_IOC_MIGRATE) raise no event",
        ),
    ),
    "xfs": (
        Gap(
            risk="xfs-swapext",
            kinds=_SHARED,
            why="XFS_IOC_SWAPEXT (xfs_fsr) on a writable descriptor raises no event",
        ),
    ),
}
_GAPS_EVERYWHERE = (
    Gap(
        risk="loop-device",
        kinds=_SHARED,
        why="a loop device set up on the file later writes and discards below every event",
    ),
)
# nfsd changes a size by calling notify_change() itself (nfsd_setattr), without opening the file.
_NFSD = Path("/sys/module/nfsd")
_NFSD_GAP = Gap(
    risk="nfs-truncate",
    kinds=_BOTH,
    why="the kernel's NFS server is loaded: truncation by an NFS client raises no event",
)


@dataclass(slots=True)
class _Watched:
    """A file with an fanotify mark. `whole`: every descriptor of it is known to be watched.
    `guards` are by token. `idle_since` is when its last guard was removed (seconds of
    CLOCK_MONOTONIC)."""

    file: FileId
    filesystem: Filesystem
    anchor: int = -1
    whole: bool = False
    guards: dict[int, Guard] = field(default_factory=dict)
    idle_since: float = math.inf


class _Hold:
    apart = True

    def __init__(self, enforcer: FanotifyEnforcer, watched: _Watched, guard: Guard) -> None:
        self._enforcer, self._watched, self._guard = enforcer, watched, guard
        self._released = False

    @property
    def anchor(self) -> int:
        return self._watched.anchor

    def change(self, verdict: Verdict) -> None:
        if not self._released:
            self._guard = replace(self._guard, verdict=verdict)
            self._enforcer.put(self._watched, self._guard)

    def resize(self, range: ByteRange) -> None:
        if not self._released:
            self._guard = replace(self._guard, range=range)
            self._enforcer.put(self._watched, self._guard)

    def watch(self, key: int) -> None:
        self._guard = replace(self._guard, watch=key)

    def drain(self) -> None:
        self._enforcer.drain_passages(self._watched.file, "the registered file")

    def adopt(self, guard: Guard) -> None:
        self._watched.guards[guard.token] = guard

    def disown(self, token: int) -> None:
        self._watched.guards.pop(token, None)

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._enforcer.take_away(self._watched, self._guard.token)


class FanotifyEnforcer:
    """See Enforcer for the methods."""

    name = "fanotify"
    late = False

    def __init__(
        self,
        keeper: Keeper,
        overlays: OverlayMounts,
        linger: float = 2.0,
        drain_timeout: float = 0.5,
    ) -> None:
        """A file stays watched for `linger` seconds after its last seal, so that the next grant
        knows which operations are under way on it. A grant waits up to `drain_timeout` seconds for
        these to end."""
        self.keeper, self.linger, self.drain_timeout = keeper, linger, drain_timeout
        self._overlays = overlays
        self._watched: dict[tuple[int, int], _Watched] = {}
        self._armed: set[int] = set()
        self._listener = Listener()

    def probe(self) -> str:
        if error := self.keeper.gate_error():
            return f"fanotify_init(FAN_CLASS_PRE_CONTENT): {os.strerror(error)}"
        return self._probe_mark()

    def _probe_mark(self) -> str:
        """Whether the kernel has FAN_PRE_ACCESS: those before 6.14 refuse the mask (EINVAL)."""
        fd = os.memfd_create("sealsvc-probe")
        try:
            self.keeper.watch(fd, 4096, False)
            st = os.fstat(fd)
            self.keeper.unwatch(st.st_dev, st.st_ino)
        except KeeperError as error:
            if error.errno == errno.EINVAL:
                return "the kernel has no FAN_PRE_ACCESS (Linux 6.14 or newer is needed)"
            return "" if error.errno == errno.EOPNOTSUPP else str(error)
        finally:
            os.close(fd)
        return ""

    def unable(self, filesystem: Filesystem, request: Grant) -> str:  # noqa: ARG002 (the interface)
        return filesystem.unsupported

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
        found = (*_GAPS.get(filesystem.type, ()), *_GAPS_EVERYWHERE)
        found = (*found, *self._overlays.gaps(filesystem))
        if _NFSD.exists():
            found = (*found, _NFSD_GAP)
        return tuple(gap for gap in found if kind in gap.kinds)

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:  # noqa: ARG002
        """None: this enforcer stands in front, never behind another."""
        return frozenset()

    def start(self, listener: Listener) -> int:
        self._listener = listener
        assert self.keeper.reports is not None
        return self.keeper.reports.fileno()

    def stop(self) -> None:
        """See Enforcer. The keeper keeps the guards in force."""
        for watched in self._watched.values():
            if watched.anchor >= 0:
                os.close(watched.anchor)
        self._watched.clear()

    def arm(self, filesystem: Filesystem, fd: int) -> None:
        if filesystem.device not in self._armed:
            with _told("fanotify_mark of the file system"):
                self.keeper.arm(fd)
            self._armed.add(filesystem.device)

    # Holds

    def hold(self, target: Target, guard: Guard) -> _Hold:
        with ExitStack() as undo:
            watched = self._watch(target, undo)
            self.put(watched, guard)
            undo.callback(self.take_away, watched, guard.token)
            try:
                self._prove(target, watched, guard)
            finally:
                if watched.anchor < 0:  # an uncounted anchor could not be had (anchors.py)
                    watched.anchor = anchors.open_counted(target.fd)
            undo.pop_all()
        return _Hold(self, watched, guard)

    def _watch(self, target: Target, undo: ExitStack) -> _Watched:
        self.arm(target.filesystem, target.fd)
        key = (target.file.device, target.file.inode)
        if found := self._watched.get(key):
            return found
        watched = _Watched(target.file, target.filesystem, anchors.open_uncounted(target.fd))
        undo.callback(self._unwatch, watched)
        kept = target.fd if watched.anchor < 0 else watched.anchor
        with _told("fanotify_mark"):
            self.keeper.watch(kept, target.filesystem.block_size, target.filesystem.reflink)
        self._watched[key] = watched
        return watched

    def put(self, watched: _Watched, guard: Guard) -> None:
        """Add or change a guard. Raises Refusal `io-error`."""
        # Record it first: reports that name the guard may come before the call returns.
        watched.guards[guard.token] = guard
        with _told("guard"):
            self.keeper.guard(watched.file.device, watched.file.inode, guards.fields(guard))

    def take_away(self, watched: _Watched, token: int) -> None:
        """Remove a guard. The file stays watched for a while."""
        if watched.guards.pop(token, None) is None:
            return
        self.keeper.unguard(watched.file.device, watched.file.inode, token)
        if not watched.guards:
            watched.idle_since = time.monotonic()

    def _unwatch(self, watched: _Watched) -> None:
        self._watched.pop((watched.file.device, watched.file.inode), None)
        with suppress(KeeperError):
            self.keeper.unwatch(watched.file.device, watched.file.inode)
        if watched.anchor >= 0:
            os.close(watched.anchor)
            watched.anchor = -1

    # Proofs that every descriptor is watched, and that no operation from before is under way.

    def _prove(self, target: Target, watched: _Watched, guard: Guard) -> None:
        others = [g for g in watched.guards.values() if g.token != guard.token]
        if guard.exclusive:
            # Beside another exclusive guard (of the same holder) it was proven before, and nobody
            # else could open the file since.
            if not any(g.exclusive for g in others):
                self._prove_sole(target, watched)
        elif not watched.whole:
            self._prove_watched(target, watched)
        watched.whole = True
        self.drain_passages(target.file, target.path)

    def drain_passages(self, file: FileId, path: str) -> None:
        """Wait for operations in flight on the file. Raises Refusal `try-later` when they do not
        end within `drain_timeout`."""
        if not self._drained(file):
            raise Refusal(
                "try-later",
                f"an operation that may change the extent map of {path} is under way",
                {"path": path},
                retry_after=0.1,
            )

    def _drained(self, file: FileId) -> bool:
        """Wait until no operation that the gate let through can still change the file's map. False
        when that takes longer than `drain_timeout`."""
        deadline = time.monotonic() + self.drain_timeout
        with _told("drain"):
            while self.keeper.passages(file.device, file.inode):
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.0001)
        return True

    def _prove_sole(self, target: Target, watched: _Watched) -> None:
        if anchors.is_counted(watched.anchor):
            os.close(watched.anchor)
            watched.anchor = -1
        if openers.is_sole(target):
            return
        pids = sorted({opener.pid for opener in self._foreign(target)})
        raise _in_use(target, pids, "an exclusive seal has no other opener")

    def _prove_watched(self, target: Target, watched: _Watched) -> None:
        """Prove that the descriptors which others have of the file are watched, by a zero-length
        read or write on a copy of each, and that no operation through them is under way. A
        descriptor that was opened before its file system was armed, and that is now only in a
        socket's queue or an io_uring's file table, is not found. Raises Refusal `file-in-use` or
        `try-later`."""
        if not anchors.is_counted(watched.anchor) and native.lease_probe(target.fd, fcntl.F_WRLCK):
            return
        others = self._foreign(target)
        blind = sorted({o.pid for o in others if not self._is_seen(o, target)})
        if blind:
            raise _in_use(
                target, blind, "their descriptors were opened before the file was watched"
            )
        for pid in {o.pid for o in others}:
            if not lib.seal_drain_process(pid, int(self.drain_timeout * 1e6)):
                raise Refusal(
                    "try-later",
                    f"process {pid} may be changing {target.path}",
                    {"path": target.path, "pids": [pid]},
                    retry_after=0.1,
                )

    def _foreign(self, target: Target) -> list[native.Opener]:
        """The descriptors of the file whose description is not the holder's, and processes that
        only map it (fd -1). Descriptors that are open for neither reading nor writing (access mode
        3, as anchors are) are left out: they cannot change a map. Raises Refusal `try-later`."""
        try:
            found = native.openers(target.file.device, target.file.inode, os.getpid())
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
            raise Refusal(
                "try-later",
                f"processes start faster than it is found which have {target.path} open",
                {"path": target.path},
                retry_after=0.1,
            ) from error
        return [
            o
            for o in found
            if o.fd < 0 or (o.flags & os.O_ACCMODE != os.O_ACCMODE and not _same(o, target.fd))
        ]

    def _is_seen(self, opener: native.Opener, target: Target) -> bool:
        if not target.filesystem.reflink and opener.flags & os.O_ACCMODE == os.O_RDONLY:
            return opener.fd >= 0  # without reflink a reader cannot change a map
        if opener.fd < 0:
            return False
        try:
            pidfd = native.pidfd_open(opener.pid)
        except OSError:
            return True  # the process has ended
        try:
            fd = native.pidfd_getfd(pidfd, opener.fd)
        except OSError as error:
            return error.errno in (errno.EBADF, errno.ESRCH)  # closed or ended meanwhile
        finally:
            os.close(pidfd)
        try:
            return self._sees(fd, target.file)
        finally:
            os.close(fd)

    def _sees(self, fd: int, file: FileId) -> bool:
        """Whether a zero-length read or write on `fd` raises an event. The kernel calls the
        permission hook before it checks the length (fs/read_write.c)."""
        with _told("watch probe"):
            before = self.keeper.own_events(file.device, file.inode)
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                os.pwrite(fd, b"", 0)
            else:
                os.pread(fd, 0, 0)
            return self.keeper.own_events(file.device, file.inode) != before

    # Reports

    def drain(self) -> None:
        listener = self._listener
        for subject, raw in self.keeper.read_reports(DRAIN_TIME):
            match subject:
                case Subject.CONFLICT:
                    listener.conflict(self._report(raw))
                case Subject.RING:
                    listener.ring(raw)
                case Subject.UNVERIFIED:
                    listener.unverified(raw)
                case Subject.TOUCHED:
                    listener.touched(raw)

    def _report(self, raw: Any) -> Report:
        watched = self._watched.get((raw.device, raw.inode))
        operation = operation_of(raw)
        return Report(
            outcome=_OUTCOMES[raw.kind],
            waiter=raw.waiter,
            file=watched.file if watched else FileId(raw.device, raw.inode),
            operation=operation,
            tokens=self._tokens(operation, watched) if watched else (),
            error=raw.result,
            waited=raw.waited_us / 1e6,
        )

    def _tokens(self, operation: Operation, watched: _Watched) -> tuple[int, ...]:
        return tuple(
            token
            for token, guard in list(watched.guards.items())  # a copy: grants run in other threads
            if guard.verdict not in _UNTOLD and guards.meets(guard, operation, watched.filesystem)
        )

    # After a restart

    def reclaim(self, claims: list[Claim], kept: dict[str, int]) -> dict[int, Hold]:  # noqa: ARG002
        files, guarded = self.keeper.snapshot()
        wanted = {claim.guard.token: claim for claim in claims}
        claimed = {(c.file.device, c.file.inode): c for c in claims}
        for found in files:
            key = (found.device, found.inode)
            if claim := claimed.get(key):
                anchor = anchors.take_over(found.fd)
                # `whole`: its last grant has proven that; descriptors opened since are watched.
                self._watched[key] = _Watched(
                    claim.file, claim.filesystem, anchor, True, idle_since=0.0
                )
        holds: dict[int, Hold] = {}
        for kept_guard in guarded:
            claim = wanted.get(kept_guard.id)
            if claim is None:  # left by a grant, or the end of a seal, that was cut off
                self.keeper.unguard(kept_guard.device, kept_guard.inode, kept_guard.id)
                continue
            watched = self._watched[(kept_guard.device, kept_guard.inode)]
            verdict = _VERDICTS[rules.Policy(kept_guard.policy)]
            guard = replace(claim.guard, verdict=verdict, backed=kept_guard.backed)
            watched.guards[guard.token] = guard
            holds[guard.token] = hold = _Hold(self, watched, guard)
            if verdict is Verdict.ARMING:
                hold.change(claim.guard.verdict)
        for found in files:
            if (found.device, found.inode) not in claimed:
                with suppress(KeeperError):
                    self.keeper.unwatch(found.device, found.inode)
            os.close(found.fd)  # after the keeper's: the last close of a file must not be its own
        return holds

    def replay(self) -> None:
        self.keeper.replay()

    # Idle files

    def verify(self) -> str:
        """See Enforcer. Only the gate needs to be checked: nobody but the keeper can remove marks
        from its group."""
        error = self.keeper.gate_error()
        return f"the gate is gone: {os.strerror(error)}" if error else ""

    def lapses(self) -> int:
        return 0

    def forget(self, filesystem: Filesystem | None = None) -> None:
        now = time.monotonic()
        for watched in list(self._watched.values()):
            due = filesystem == watched.filesystem or now - watched.idle_since >= self.linger
            if not watched.guards and due and watched.idle_since < math.inf:
                self._unwatch(watched)


@contextmanager
def _told(call: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refusal(
            "io-error", f"{call}: {error.strerror}", {"call": call, "errno": error.errno}
        ) from error


def operation_of(raw: Any) -> Operation:
    """The operation of a struct seal_report."""
    hidden = raw.operation.op in _UNKNOWN
    return Operation(
        name=ffi.string(lib.seal_op_name(raw.operation.op)).decode(),
        offset=raw.operation.offset,
        length=raw.operation.length,
        pid=raw.tgid,
        tid=raw.operation.tid,
        comm=ffi.string(raw.comm).decode(errors="replace"),
        uid=raw.uid,
        detail="what it does cannot be proven: judged by its range" if hidden else "",
    )


def _same(opener: native.Opener, fd: int) -> bool:
    try:
        return native.same_description(opener.pid, opener.fd, os.getpid(), fd)
    except OSError:
        return True  # closed or ended meanwhile


def _in_use(target: Target, pids: list[int], why: str) -> Refusal:
    names = []
    for pid in pids:
        try:
            names.append(f"{pid} ({psutil.Process(pid).name()})")
        except psutil.Error:
            names.append(str(pid))
    who = (
        ", ".join(names) or "somebody who is in no process table (a socket's queue, or the kernel)"
    )
    return Refusal(
        "file-in-use",
        f"{target.path} is open in {who}: {why}",
        {"path": target.path, "pids": pids},
        retry_after=1.0,
    )
