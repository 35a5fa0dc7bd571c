"""The fanotify enforcer: pre-content events (Linux 6.14+), answered by the gate in the keeper.

It sees operations through a watched descriptor or a path. A descriptor is watched if it was opened
after its file system was armed; `hold` proves for each file that no other descriptor exists. The
gate continues to judge while no service is running; `reclaim` takes over its guards.
"""

from __future__ import annotations

import errno
import math
import os
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from sealsvc.core import rules
from sealsvc.core.model import ByteRange, FileId, Gap, Kind, Operation, SealTerms
from sealsvc.enforce import anchors, fanotify_gaps, guards
from sealsvc.enforce.base import (
    DRAIN_TIME,
    Guard,
    Hold,
    Listener,
    Outcome,
    RecoveredGuard,
    Report,
    Verdict,
)
from sealsvc.enforce.keeper import Keeper, Subject
from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.enforce.overlay_mounts import OverlayMounts
from sealsvc.enforce.watch_proof import Watched, WatchProof, as_refusal
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.linux.native import ffi, lib

# Verdicts of guards that reports do not name: a grant is being made, or a registration decides.
_UNTOLD = (Verdict.ARMING, Verdict.WATCH)
_VERDICTS = {policy: verdict for verdict, policy in guards.POLICIES.items()}
_OUTCOMES = {
    lib.SEAL_REPORT_HELD: Outcome.HELD,
    lib.SEAL_REPORT_REFUSED: Outcome.REFUSED,
    lib.SEAL_REPORT_ENDED: Outcome.ENDED,
}

_UNKNOWN = (lib.SEAL_OP_HIDDEN, lib.SEAL_OP_OPEN_HIDDEN, lib.SEAL_OP_WRITE_UNKNOWN)


class _Hold:
    apart = True

    def __init__(self, enforcer: FanotifyEnforcer, watched: Watched, guard: Guard) -> None:
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
        self._enforcer.proof.drain_in_flight(self._watched.file, "the registered file")

    def track(self, guard: Guard) -> None:
        self._watched.guards[guard.token] = guard

    def untrack(self, token: int) -> None:
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
        self.keeper, self.linger = keeper, linger
        self.proof = WatchProof(keeper, drain_timeout)
        self._overlays = overlays
        self._watched: dict[tuple[int, int], Watched] = {}
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

    def unable(self, filesystem: Filesystem, terms: SealTerms) -> str:  # noqa: ARG002 (the interface)
        return filesystem.unsupported

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
        overlays = self._overlays.gaps(filesystem)
        return (
            *fanotify_gaps.gaps(filesystem, kind),
            *(gap for gap in overlays if kind in gap.kinds),
        )

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
            with as_refusal("fanotify_mark of the file system"):
                self.keeper.arm(fd)
            self._armed.add(filesystem.device)

    # Holds

    def hold(self, target: Target, guard: Guard) -> _Hold:
        with ExitStack() as undo:
            watched = self._watch(target, undo)
            self.put(watched, guard)
            undo.callback(self.take_away, watched, guard.token)
            try:
                self.proof.prove(target, watched, guard)
            finally:
                if watched.anchor < 0:  # an uncounted anchor could not be had (anchors.py)
                    watched.anchor = anchors.open_counted(target.fd)
            undo.pop_all()
        return _Hold(self, watched, guard)

    def _watch(self, target: Target, undo: ExitStack) -> Watched:
        self.arm(target.filesystem, target.fd)
        key = (target.file.device, target.file.inode)
        if found := self._watched.get(key):
            return found
        watched = Watched(target.file, target.filesystem, anchors.open_uncounted(target.fd))
        undo.callback(self._unwatch, watched)
        kept = target.fd if watched.anchor < 0 else watched.anchor
        with as_refusal("fanotify_mark"):
            self.keeper.watch(kept, target.filesystem.block_size, target.filesystem.reflink)
        self._watched[key] = watched
        return watched

    def put(self, watched: Watched, guard: Guard) -> None:
        """Add or change a guard. Raises Refusal `io-error`."""
        # Record it first: reports that name the guard may come before the call returns.
        watched.guards[guard.token] = guard
        with as_refusal("guard"):
            self.keeper.guard(watched.file.device, watched.file.inode, guards.fields(guard))

    def take_away(self, watched: Watched, token: int) -> None:
        """Remove a guard. The file stays watched for a while."""
        if watched.guards.pop(token, None) is None:
            return
        self.keeper.unguard(watched.file.device, watched.file.inode, token)
        if not watched.guards:
            watched.idle_since = time.monotonic()

    def _unwatch(self, watched: Watched) -> None:
        self._watched.pop((watched.file.device, watched.file.inode), None)
        with suppress(KeeperError):
            self.keeper.unwatch(watched.file.device, watched.file.inode)
        if watched.anchor >= 0:
            os.close(watched.anchor)
            watched.anchor = -1

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

    def _tokens(self, operation: Operation, watched: Watched) -> tuple[int, ...]:
        return tuple(
            token
            for token, guard in list(watched.guards.items())  # a copy: grants run in other threads
            if guard.verdict not in _UNTOLD and guards.meets(guard, operation, watched.filesystem)
        )

    # After a restart

    def reclaim(self, claims: list[RecoveredGuard], kept: dict[str, int]) -> dict[int, Hold]:  # noqa: ARG002
        files, guarded = self.keeper.snapshot()
        wanted = {claim.guard.token: claim for claim in claims}
        claimed = {(c.file.device, c.file.inode): c for c in claims}
        for found in files:
            key = (found.device, found.inode)
            if claim := claimed.get(key):
                anchor = anchors.take_over(found.fd)
                # `whole`: its last grant has proven that; descriptors opened since are watched.
                self._watched[key] = Watched(
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

    def missed(self) -> int:
        return 0

    def forget(self, filesystem: Filesystem | None = None) -> None:
        now = time.monotonic()
        idle = [watched for watched in list(self._watched.values()) if not watched.guards]
        for watched in idle:
            due = filesystem == watched.filesystem or now - watched.idle_since >= self.linger
            if due and watched.idle_since < math.inf:
                self._unwatch(watched)


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
