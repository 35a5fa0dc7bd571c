"""The pin enforcer: page references that make a file system on DAX wait (native/kernel/pin.c).

While a reference to one page of a file sits in a pipe, the file system's own break_layouts() holds
whatever would change the file's blocks, through any descriptor, path or overlay. It is the last
net, and off by default: whoever waits there holds the inode's lock, so that everybody's read, write
and FIEMAP of the file block too, and cannot be killed. docs/pin.md has the rules.

The kernel does not tell who waits: a thread looks for tasks that sleep in dax_break_layout().
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, FileId, Kind, Operation
from sealsvc.enforce.base import Claim, Guard, Hold, Outcome, Report, Verdict
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.overlay_mounts import RISK as OVERLAY_RISK
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.linux.host.mapped import has_dax
from sealsvc.linux.native import ffi, lib
from sealsvc.protocol.seals import Grant
from sealsvc.protocol.system import Gap

INTERVAL = 0.2  # seconds between two looks for waiters, while something is pinned
# Before, break_layouts() asked for pinned pages only while somebody mapped the file
# (mapping_mapped() in fs/dax.c), and nobody need.
_SINCE = (6, 15)
_MAX_WAITERS = 256
_PATH_MAX = 4096
_BY_DESCRIPTOR = {77: (0,), 285: (0,), 16: (0,), 326: (0, 2)}  # x86-64: which arguments are fds
_BY_PATH = {76: 0, 2: 0, 257: 1}  # truncate, open, openat: which argument is a path


class _Pin:
    """A page reference in a pipe, and a descriptor that keeps the last close of the file ours."""

    apart = True

    def __init__(self, enforcer: PinEnforcer, file: FileId, token: int) -> None:
        self.enforcer, self.file, self.token = enforcer, file, token
        self.anchor = -1
        self.pipe: list[int] = []

    @property
    def names(self) -> list[str]:
        """What the keeper calls them; the pipe first, since it must be let go first."""
        return [f"pin-{part}:{self.token}" for part in ("read", "write", "anchor")]

    def change(self, verdict: Verdict) -> None:
        """Pins make everybody wait, whatever the verdict."""

    def resize(self, range: ByteRange) -> None:
        """It holds the whole file, whatever the range."""

    def release(self) -> None:
        self.enforcer.let_go(self)


@dataclass(slots=True)
class _Waiter:
    id: int
    pin: _Pin
    operation: Operation
    since: float = field(default_factory=time.monotonic)


class PinEnforcer:
    name = "pin"
    late = True

    def __init__(self, keeper: Keeper, interval: float = INTERVAL) -> None:
        self.keeper, self.interval = keeper, interval
        self._lock = threading.Lock()
        self._pins: dict[int, _Pin] = {}
        self._waiters: dict[int, _Waiter] = {}  # by task
        self._numbers = itertools.count(1)
        self._reports: list[Report] = []
        self._deliver: Callable[[Report], None] = _nobody
        self._ready = -1
        self._wake = threading.Event()
        self._watcher: threading.Thread | None = None
        self._stopping = False

    def probe(self) -> str:
        system = os.uname()
        if system.machine != "x86_64":
            return "waiters are told apart on x86-64 only"
        if tuple(map(int, re.findall(r"\d+", system.release)[:2])) < _SINCE:
            return (
                f"before Linux {_SINCE[0]}.{_SINCE[1]} pinned pages hold nothing up"
                f" when nobody maps the file; this is {system.release}"
            )
        return ""

    def unable(self, filesystem: Filesystem, request: Grant) -> str:
        if filesystem.unsupported:
            return filesystem.unsupported
        if not filesystem.dax:
            return "the file system is not mounted with dax=always"
        if request.conflict is not Conflict.WAIT:
            return "pins make conflicts wait; they cannot refuse"
        if request.kind is Kind.EXCLUSIVE:
            return "pins do not keep others from opening the file"
        return ""

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:  # noqa: ARG002 (interface)
        if filesystem.type != "xfs":
            return ()
        why = "XFS_IOC_SWAPEXT does not wait for pinned pages"
        return (Gap(risk="xfs-swapext", kinds=[Kind.SHARED], why=why),)

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:  # noqa: ARG002
        return frozenset({OVERLAY_RISK}) if filesystem.dax else frozenset()

    def arm(self, filesystem: Filesystem, fd: int) -> None:
        """Nothing to do: pins hold whoever comes, by whatever way."""

    def verify(self) -> str:
        """Nothing to try: the file systems' own locks hold pins, and no switch turns them off."""
        return ""

    def lapses(self) -> int:
        return 0

    def forget(self, filesystem: Filesystem | None = None) -> None:
        """Nothing is kept."""

    # Pins

    def hold(self, target: Target, guard: Guard) -> _Pin:
        if not has_dax(target.fd):
            raise Refusal("not-dax", f"{target.path} is not a DAX file", {"path": target.path})
        pin = _Pin(self, target.file, guard.token)
        # Before the pin: opening must not wait on it.
        pin.anchor = os.open(f"/proc/self/fd/{target.fd}", os.O_RDONLY | os.O_CLOEXEC)
        ends = ffi.new("int[2]")
        error: int = lib.seal_pin(pin.anchor, guard.range.offset, ends)
        if error:
            os.close(pin.anchor)
            raise Refusal("io-error", f"vmsplice: {os.strerror(-error)}", {"errno": -error})
        pin.pipe = list(ends)
        for name, fd in zip(pin.names, (*pin.pipe, pin.anchor), strict=True):
            self.keeper.keep(name, fd)
        self._add(pin)
        return pin

    def _add(self, pin: _Pin) -> None:
        with self._lock:
            self._pins[pin.token] = pin
        self._wake.set()

    def let_go(self, pin: _Pin) -> None:
        """The pipe before the anchor: closing a file whose pages are referenced may hang."""
        with self._lock:
            if self._pins.pop(pin.token, None) is None:
                return
        for name in pin.names[:2]:
            self.keeper.drop(name)
        for fd in pin.pipe:
            os.close(fd)
        self.keeper.drop(pin.names[2])
        os.close(pin.anchor)
        pin.anchor = -1
        self._wake.set()

    def reclaim(self, claims: list[Claim], kept: dict[str, int]) -> dict[int, Hold]:
        holds: dict[int, Hold] = {}
        for claim in claims:
            pin = _Pin(self, claim.file, claim.guard.token)
            fds = [kept[name] for name in pin.names if name in kept]
            if len(fds) == len(pin.names):
                *pin.pipe, pin.anchor = map(os.dup, fds)
                self._add(pin)
                holds[pin.token] = pin
        return holds

    # Waiters

    def start(self, deliver: Callable[[Report], None]) -> int:
        self._deliver = deliver
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watcher = threading.Thread(target=self._watch, name="seal-pins", daemon=True)
        self._watcher.start()
        return self._ready

    def stop(self) -> None:
        """The pins stay, with the keeper; our own references go, pipes first."""
        self._stopping = True
        self._wake.set()
        if self._watcher is not None:
            self._watcher.join()
            os.close(self._ready)
        for pin in self._pins.values():
            for fd in (*pin.pipe, pin.anchor):
                os.close(fd)
        self._pins.clear()

    def replay(self) -> None:
        """Whoever waits is found by the next look."""

    def drain(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._ready)
        with self._lock:
            reports, self._reports = self._reports, []
        for report in reports:
            self._deliver(report)

    def _watch(self) -> None:
        found = ffi.new("struct seal_pin_waiter[]", _MAX_WAITERS)
        while not self._stopping:
            with self._lock:
                idle = not self._pins and not self._waiters
            self._wake.wait(None if idle else self.interval)
            self._wake.clear()
            count = 0 if idle else int(lib.seal_pin_waiters(found, _MAX_WAITERS))
            self._compare({found[i].tid: found[i] for i in range(min(max(count, 0), _MAX_WAITERS))})

    def _compare(self, now: dict[int, Any]) -> None:
        """Who has come, who has gone."""
        with self._lock:
            pins = list(self._pins.values())
        reports = [self._ended(self._waiters.pop(tid)) for tid in self._waiters.keys() - now.keys()]
        for tid in now.keys() - self._waiters.keys():
            for pin in _pins_of(now[tid], pins):
                waiter = _Waiter(next(self._numbers), pin, _operation(now[tid]))
                self._waiters[tid] = waiter
                reports.append(self._report(Outcome.HELD, waiter))
        if reports:
            with self._lock:
                self._reports += reports
            os.eventfd_write(self._ready, 1)

    def _ended(self, waiter: _Waiter) -> Report:
        return self._report(Outcome.ENDED, waiter, time.monotonic() - waiter.since)

    def _report(self, outcome: Outcome, waiter: _Waiter, waited: float = 0.0) -> Report:
        return Report(
            outcome,
            waiter.id,
            waiter.pin.file,
            waiter.operation,
            (waiter.pin.token,),
            waited=waited,
        )


def _nobody(report: Report) -> None:
    raise RuntimeError(f"a report before start: {report}")


def _pins_of(waiter: Any, pins: list[_Pin]) -> list[_Pin]:
    """The pins of the file that a task waits on; all of them when that cannot be told: one recall
    too many does less harm than a wait without end."""
    if waiter.tgid == os.getpid():
        return []
    files = set(_files_of(waiter))
    found = [pin for pin in pins if (pin.file.device, pin.file.inode) in files]
    return found or ([] if files else pins)


def _files_of(waiter: Any) -> Iterator[tuple[int, int]]:
    """(device, inode) of what the system call names. What lies behind an overlay is named by
    nothing that can be seen from here."""
    call = waiter.call
    base = f"/proc/{waiter.tgid}"
    names = [f"{base}/fd/{call.args[i]}" for i in _BY_DESCRIPTOR.get(call.nr, ())]
    if call.nr in _BY_PATH:
        names += _path_of(waiter, call.args[_BY_PATH[call.nr]], call.args[0])
    for name in names:
        with suppress(OSError):
            st = os.stat(name)
            if _is_overlay(name):
                return
            yield st.st_dev, st.st_ino


def _path_of(waiter: Any, address: int, directory: int) -> list[str]:
    base = f"/proc/{waiter.tgid}"
    try:
        with Path(f"{base}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            path = os.fsdecode(memory.read(_PATH_MAX).split(b"\0", 1)[0])
    except (OSError, ValueError):
        return []
    if path.startswith("/"):
        return [f"{base}/root{path}"]
    at = _c_int(directory)
    start = f"{base}/cwd" if waiter.call.nr != 257 or at < 0 else f"{base}/fd/{at}"
    return [f"{start}/{path}"]


def _c_int(word: int) -> int:
    """A register as the C int that it carries (AT_FDCWD is negative)."""
    low = word & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def _is_overlay(name: str) -> bool:
    fd = os.open(name, os.O_PATH | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
    finally:
        os.close(fd)
    found = re.search(r"^mnt_id:\s*(\d+)", info, re.M)
    mounts = Path("/proc/self/mountinfo").read_text()
    return bool(found and re.search(rf"^{found[1]} .* - overlay ", mounts, re.M))


def _operation(waiter: Any) -> Operation:
    raw = ffi.new("struct seal_operation *", {"op": lib.SEAL_OP_HIDDEN})
    lib.seal_operation_of_call(ffi.addressof(waiter, "call"), raw)
    task = ffi.new("struct seal_task *")
    known = lib.seal_task_read(waiter.tid, task) == 0
    return Operation(
        name=ffi.string(lib.seal_op_name(raw.op)).decode(),
        offset=raw.offset,
        length=raw.length,
        pid=waiter.tgid,
        tid=waiter.tid,
        comm=ffi.string(task.comm).decode(errors="replace") if known else "",
        uid=int(task.uid) if known else -1,
        detail="waits on a pinned page",
    )
