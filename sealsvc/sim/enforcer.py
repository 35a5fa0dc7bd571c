"""The simulated enforcer: the manners of the gate, for operations that a script makes up.

What conflicts is judged by the same rule book (rules.py); the waiting is done here.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sealsvc.core import rules
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId, Gap, Kind, Operation, SealTerms
from sealsvc.enforce import guards
from sealsvc.enforce.base import Guard, Hold, Listener, Outcome, RecoveredGuard, Report, Verdict
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.protocol.system import Simulate
from sealsvc.runtime import clock
from sealsvc.sim.host import FILESYSTEM, SimHost


@dataclass(slots=True, eq=False)
class Waiter:
    """An operation under way. `done` gives the errno it ends with (0: it went on)."""

    id: int
    file: FileId
    operation: Operation
    done: Future[int] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    reported: bool = False


class _Hold:
    apart = True

    def __init__(self, enforcer: SimEnforcer, file: FileId, guard: Guard, anchor: int) -> None:
        self._enforcer, self._file, self._guard = enforcer, file, guard
        self._anchor, self._released = anchor, False

    @property
    def anchor(self) -> int:
        return self._anchor

    def change(self, verdict: Verdict) -> None:
        if not self._released:
            self._guard = replace(self._guard, verdict=verdict)
            self._enforcer.put(self._file, self._guard)

    def resize(self, range: ByteRange) -> None:
        if not self._released:
            self._guard = replace(self._guard, range=range)
            self._enforcer.put(self._file, self._guard)

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._enforcer.take_away(self._file, self._guard.token)


class SimEnforcer:
    name = "sim"
    late = False

    def __init__(self, host: SimHost) -> None:
        self.host = host
        self._lock = threading.RLock()
        self._guards: dict[FileId, dict[int, Guard]] = {}
        self._waiters: list[Waiter] = []
        self._ids = itertools.count(1)
        self._reports: deque[Report] = deque()
        self._listener = Listener()
        self._notify = -1

    def probe(self) -> str:
        return ""

    def unable(self, filesystem: Filesystem, terms: SealTerms) -> str:  # noqa: ARG002 (interface)
        return ""

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:  # noqa: ARG002 (interface)
        return ()

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:  # noqa: ARG002
        """Stands in front, never behind."""
        return frozenset()

    def start(self, listener: Listener) -> int:
        with self._lock:
            self._listener = listener
            self._notify = os.eventfd(len(self._reports), os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._notify

    def stop(self) -> None:
        """Like a closed fanotify group: whatever is held goes on."""
        with self._lock:
            self._guards.clear()
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                self._finish(waiter, 0)
            self._reports.clear()
            if self._notify >= 0:
                os.close(self._notify)
                self._notify = -1

    def arm(self, filesystem: Filesystem, fd: int) -> None:
        """Nothing to do: no operation gets around the simulation."""

    def reclaim(self, claims: list[RecoveredGuard], kept: dict[str, int]) -> dict[int, Hold]:  # noqa: ARG002
        """A simulated kernel dies with its service."""
        return {}

    def replay(self) -> None:
        """Nothing is held."""

    def verify(self) -> str:
        """Nothing turns a simulation off."""
        return ""

    def missed(self) -> int:
        return 0

    def forget(self, filesystem: Filesystem | None = None) -> None:
        """Nothing is kept."""

    def hold(self, target: Target, guard: Guard) -> _Hold:
        self.host.check("arm")
        anchor = self.host.anchor(target.file)
        self.put(target.file, guard)
        return _Hold(self, target.file, guard, anchor)

    def put(self, file: FileId, guard: Guard) -> None:
        with self._lock:
            self._guards.setdefault(file, {})[guard.token] = guard
            self._settle_all(file)

    def take_away(self, file: FileId, token: int) -> None:
        with self._lock:
            here = self._guards.get(file, {})
            here.pop(token, None)
            if not here:
                self._guards.pop(file, None)
            self._settle_all(file)

    def drain(self) -> None:
        """Tokens are those that were met when the report was made."""
        with self._lock:
            if self._notify >= 0:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._notify)
            reports, self._reports = self._reports, deque()
        for report in reports:
            self._listener.conflict(report)

    # Operations

    def conflict(self, path: str, operation: str, offset: int, length: int, pid: int) -> Waiter:
        """An operation of process `pid` begins."""
        if operation not in rules.NAMES:
            raise Refusal(
                "bad-request",
                f"no operation {operation!r}; there are {', '.join(sorted(rules.NAMES))}",
            )
        if min(offset, length, pid) < 0 or max(offset, length) >= 2**63 or pid >= 2**31:
            raise Refusal("bad-request", "offset, length or pid is out of range")
        file = self.host.identify(path)
        asked = Operation(name=operation, offset=offset, length=length, pid=pid, tid=pid)
        with self._lock:
            waiter = Waiter(next(self._ids), file, asked)
            if not self._settle(waiter):
                self._waiters.append(waiter)
        return waiter

    def interrupt(self, waiter: Waiter) -> None:
        """Its caller was killed."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._finish(waiter, errno.EINTR)

    def _judge(self, waiter: Waiter) -> tuple[list[Guard], int]:
        """The guards it conflicts with, and the errno that they give it at once."""
        met = [
            guard
            for guard in self._guards.get(waiter.file, {}).values()
            if guards.meets(guard, waiter.operation, FILESYSTEM)
        ]
        error = 0
        for guard in met:
            own = guards.is_holder(guard, waiter.operation)
            refusal = rules.policy_errno(guards.POLICIES[guard.verdict], by_holder=own)
            error = rules.prevailing(error, refusal)
        return met, error

    def _settle(self, waiter: Waiter) -> bool:
        """Judge it anew; true when it has ended."""
        met, error = self._judge(waiter)
        if not met or error:
            self._finish(waiter, error, met)
            return True
        strictest = max(met, key=lambda guard: guards.POLICIES[guard.verdict]).verdict
        if strictest is not Verdict.ARMING and not waiter.reported:
            waiter.reported = True
            self._report(Outcome.HELD, waiter, met)
        return False

    def _settle_all(self, file: FileId) -> None:
        self._waiters = [w for w in self._waiters if w.file != file or not self._settle(w)]

    def _finish(self, waiter: Waiter, error: int, met: list[Guard] | None = None) -> None:
        waiter.waited = time.monotonic() - waiter.since
        if waiter.reported:
            self._report(Outcome.ENDED, waiter, met or [], error)
        elif error and error != errno.EINTR:
            self._report(Outcome.REFUSED, waiter, met or [], error)
        if not waiter.done.done():
            waiter.done.set_result(error)

    def _report(self, outcome: Outcome, waiter: Waiter, met: list[Guard], error: int = 0) -> None:
        self._reports.append(
            Report(
                outcome=outcome,
                waiter=0 if outcome is Outcome.REFUSED else waiter.id,
                file=waiter.file,
                operation=waiter.operation,
                tokens=tuple(guard.token for guard in met),
                error=error,
                waited=waiter.waited,
            )
        )
        if self._notify >= 0:
            os.eventfd_write(self._notify, 1)


async def simulate(
    host: SimHost, enforcer: SimEnforcer, tick: Callable[[], None], request: Simulate
) -> dict[str, Any]:
    """Do what the request asks; a conflict is answered when it ends. `tick` has the service look at
    the clock."""
    path = request.path or ""
    if request.action in ("create", "conflict", "drift", "map", "unmap") and not path:
        raise Refusal("bad-request", f"{request.action} needs a path")
    match request.action:
        case "create":
            if not 0 < request.size <= 2**62:
                raise Refusal("bad-request", "create needs a size of at least 1")
            return {"inode": host.create(path, request.size).inode}
        case "conflict":
            return await _conflict(enforcer, path, request)
        case "fail":
            host.fail(request.step, request.errno, request.times)
        case "drift":
            host.drift(path, request.offset)
        case "map":
            host.map(path, request.pid)
        case "unmap":
            host.unmap(path, request.pid)
        case "clock":
            clock.advance(request.seconds)
            tick()
        case _:
            raise Refusal("bad-request", f"the simulation has no action {request.action!r}")
    return {}


async def _conflict(enforcer: SimEnforcer, path: str, request: Simulate) -> dict[str, Any]:
    waiter = enforcer.conflict(path, request.operation, request.offset, request.length, request.pid)
    try:
        error = await asyncio.shield(asyncio.wrap_future(waiter.done))
    except asyncio.CancelledError:
        enforcer.interrupt(waiter)
        raise
    return {
        "result": "refused" if error else "passed",
        "errno": errno.errorcode[error] if error else None,
        "waited": waiter.waited,
    }
