"""The pin enforcer: page references that make a DAX file system wait (native/kernel/pin.c).

While a pipe holds a reference to one page of a file, the file system's own break_layouts() holds
every operation that would change the file's blocks, through any descriptor, path or overlay. It is
the last resort, and off by default: a task that waits there holds the inode's lock, so that every
read, write and FIEMAP of the file blocks too, and none of these can be killed. docs/pin.md has the
rules.

The kernel does not tell who waits. A thread checks for each pinned file whether its lock can be
taken. Where it cannot, the thread looks for tasks that sleep in dax_break_layout(). The arguments
of their system calls are not decisive: clones and deduplications name two files, one of them in the
caller's memory.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Conflict, FileId, Gap, Kind, Operation, SealTerms
from sealsvc.enforce.base import Guard, Hold, Listener, Outcome, RecoveredGuard, Report, Verdict
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.overlay_mounts import RISK as OVERLAY_RISK
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.linux.host.mapped import has_dax
from sealsvc.linux.native import ffi, lib

INTERVAL = 0.2  # seconds between two looks for waiters, while something is pinned
# Seconds for which a file's lock must be held until the file counts as waited for although no task
# sleeps for its pages: when XFS breaks the layout of the second of two files
# (xfs_mmaplock_two_inodes_and_break_dax_layout(), 6.18), it does not sleep but retries.
_CONTENDED_FOR = 2.0
# Tries in one look, and seconds between them: writers take the lock too, but release it soon.
_TRIES, _PAUSE = 5, 0.004
# Earlier kernels look for pinned pages in break_layouts() only while somebody maps the file
# (mapping_mapped() in fs/dax.c), which nobody needs to do.
_SINCE = (6, 15)
_MAX_WAITERS = 256
# Operations that do not call break_layouts(): they change the map despite pinned pages.
_UNHELD = {
    "ext4": {
        "ext4-move-ext": "EXT4_IOC_MOVE_EXT (e4defrag) does not wait for pinned pages",
        "ext4-swap-boot": "EXT4_IOC_SWAP_BOOT does not wait for pinned pages",
        "ext4-inode-flags": "chattr +j and -e (FS_IOC_SETFLAGS, EXT4_IOC_MIGRATE) do not wait for"
        " pinned pages",
    },
    "xfs": {"xfs-swapext": "XFS_IOC_SWAPEXT (xfs_fsr) does not wait for pinned pages"},
}
_GAPS = {
    type: tuple(Gap(risk=risk, kinds=[Kind.SHARED], why=why) for risk, why in unheld.items())
    for type, unheld in _UNHELD.items()
}
# The arguments that are descriptors, by system call number (x86-64): ftruncate, fallocate, ioctl
# and copy_file_range.
_DESCRIPTORS = {77: (0,), 285: (0,), 16: (0, 2), 326: (0, 2)}
_UNKNOWN = Operation(
    name="hidden",
    offset=0,
    length=0,
    pid=0,
    detail="the file's lock is held, by whom cannot be seen: a clone or deduplication of a pinned"
    " file does not sleep while it waits",
)


class _Pin:
    """A page reference in a pipe, and a descriptor of the file, so that the last close of the file
    is done by the service."""

    apart = True

    def __init__(self, enforcer: PinEnforcer, file: FileId, guard: Guard) -> None:
        self.enforcer, self.file = enforcer, file
        self.token, self.offset = guard.token, guard.range.offset
        self.anchor = -1
        self.pipe: list[int] = []

    @property
    def names(self) -> list[str]:
        """The names under which the keeper has the descriptors. The pipe's come first, because they
        must be closed first."""
        return [f"pin-{part}:{self.token}" for part in ("read", "write", "anchor")]

    def change(self, verdict: Verdict) -> None:
        """Nothing to do: a pin makes everybody wait, whatever the verdict."""

    def resize(self, range: ByteRange) -> None:
        """Nothing to do: a pin holds the whole file."""

    def release(self) -> None:
        self.enforcer.let_go(self)


@dataclass(slots=True)
class _Waiter:
    id: int
    pin: _Pin
    operation: Operation
    since: float = field(default_factory=time.monotonic)


class PinEnforcer:
    """See Enforcer for the methods. `interval` is in seconds."""

    name = "pin"
    late = True

    def __init__(self, keeper: Keeper, interval: float = INTERVAL) -> None:
        self.keeper, self.interval = keeper, interval
        self._lock = threading.Lock()
        self._pins: dict[int, _Pin] = {}
        self._waiters: dict[tuple[int, int], _Waiter] = {}  # by task (0: unknown) and token
        self._contended: dict[int, float] = {}  # since when (CLOCK_MONOTONIC), by token
        self._numbers = itertools.count(1)
        self._reports: list[Report] = []
        self._listener = Listener()
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

    def unable(self, filesystem: Filesystem, terms: SealTerms) -> str:
        if filesystem.unsupported:
            return filesystem.unsupported
        if not filesystem.dax:
            return "the file system is not mounted with dax=always"
        if terms.conflict is not Conflict.WAIT:
            return "pins make conflicts wait; they cannot refuse"
        if terms.kind is Kind.EXCLUSIVE:
            return "pins do not keep others from opening the file"
        return ""

    def gaps(self, filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
        return tuple(gap for gap in _GAPS.get(filesystem.type, ()) if kind in gap.kinds)

    def closes(self, filesystem: Filesystem, kind: Kind) -> frozenset[str]:  # noqa: ARG002
        return frozenset({OVERLAY_RISK}) if filesystem.dax else frozenset()

    def arm(self, filesystem: Filesystem, fd: int) -> None:
        """Nothing to do: a pin holds operations through any descriptor."""

    def verify(self) -> str:
        """Nothing to test: the file system itself waits for pins, and no switch turns that off."""
        return ""

    def missed(self) -> int:
        return 0

    def forget(self, filesystem: Filesystem | None = None) -> None:
        """Nothing is kept."""

    # Pins

    def hold(self, target: Target, guard: Guard) -> _Pin:
        if not has_dax(target.fd):
            raise Refusal("not-dax", f"{target.path} is not a DAX file", {"path": target.path})
        pin = _Pin(self, target.file, guard)
        # Opened before the pin is in force, on which the open might wait.
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
        """Release a pin. The pipe is closed before the anchor, because closing a file whose pages
        are referenced may hang."""
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

    def reclaim(self, claims: list[RecoveredGuard], kept: dict[str, int]) -> dict[int, Hold]:
        holds: dict[int, Hold] = {}
        for claim in claims:
            pin = _Pin(self, claim.file, claim.guard)
            fds = [kept[name] for name in pin.names if name in kept]
            if len(fds) == len(pin.names):
                *pin.pipe, pin.anchor = map(os.dup, fds)
                self._add(pin)
                holds[pin.token] = pin
        return holds

    # Waiters

    def start(self, listener: Listener) -> int:
        self._listener = listener
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watcher = threading.Thread(target=self._watch, name="seal-pins", daemon=True)
        self._watcher.start()
        return self._ready

    def stop(self) -> None:
        """The keeper keeps the pins in force; the service's own descriptors are closed, pipes
        first."""
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
        """Nothing to do: the thread finds again who waits."""

    def drain(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._ready)
        with self._lock:
            reports, self._reports = self._reports, []
        for report in reports:
            self._listener.conflict(report)

    def _watch(self) -> None:
        while not self._stopping:
            with self._lock:
                idle = not self._pins and not self._waiters
            self._wake.wait(None if idle else self.interval)
            self._wake.clear()
            if not self._stopping:
                contended = self._in_contention()
                self._compare(contended, _sleepers() if contended else {})

    def _in_contention(self) -> list[_Pin]:
        """The pins of files whose lock cannot be taken."""
        with self._lock:
            pins = list(self._pins.values())
        for _ in range(_TRIES):
            pins = [pin for pin in pins if self._is_contended(pin)]
            if not pins:
                break
            time.sleep(_PAUSE)
        now = time.monotonic()
        self._contended = {pin.token: self._contended.get(pin.token, now) for pin in pins}
        return pins

    def _is_contended(self, pin: _Pin) -> bool:
        with self._lock:  # so that the anchor is not closed meanwhile
            return pin.token in self._pins and is_contended(pin.anchor, pin.offset)

    def _compare(self, contended: list[_Pin], sleepers: dict[int, Any]) -> None:
        """Report the tasks that have begun to wait, and those that have ended their wait, since the
        last call."""
        found = {
            (tid, pin.token): (pin, sleeper)
            for tid, sleeper in sleepers.items()
            for pin in _pins_of(sleeper, contended)
        }
        met = {token for _, token in found}
        long_ago = time.monotonic() - _CONTENDED_FOR
        for pin in contended:
            if pin.token not in met and self._contended[pin.token] < long_ago:
                found[0, pin.token] = (pin, None)
        gone = self._waiters.keys() - found.keys()
        reports = [self._ended(self._waiters.pop(key)) for key in gone]
        for key in found.keys() - self._waiters.keys():
            pin, sleeper = found[key]
            operation = _UNKNOWN if sleeper is None else _operation(sleeper)
            self._waiters[key] = _Waiter(next(self._numbers), pin, operation)
            reports.append(self._report(Outcome.HELD, self._waiters[key]))
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


def is_contended(fd: int, offset: int) -> bool:
    """Whether a read of the file of `fd` at `offset` (bytes) would have to wait for its lock, which
    a task that waits on the pin holds. Does not block."""
    return bool(lib.seal_pin_contended(fd, offset))


def _sleepers() -> dict[int, Any]:
    """The tasks that sleep in the kernel for pages in use, except the service's own, by tid."""
    found = ffi.new("struct seal_pin_waiter[]", _MAX_WAITERS)
    count = min(max(int(lib.seal_pin_waiters(found, _MAX_WAITERS)), 0), _MAX_WAITERS)
    # Copied, because an element does not keep the memory of its array alive.
    sleepers = [ffi.new("struct seal_pin_waiter *", found[i])[0] for i in range(count)]
    return {int(s.tid): s for s in sleepers if s.tgid != os.getpid()}


def _pins_of(waiter: Any, contended: list[_Pin]) -> list[_Pin]:
    """The pins that a task may wait on: those of `contended` that descriptors among its arguments
    name, if there are any; else all, because the file may be named by a path, in its memory, or not
    at all. An unneeded recall does less harm than an endless wait."""
    if len(contended) == 1:
        return contended
    inodes = _inodes_of(waiter)
    return [pin for pin in contended if pin.file.inode in inodes] or contended


def _inodes_of(waiter: Any) -> set[int]:
    """The inodes of the descriptors among the arguments of the system call. They are read from
    fdinfo, without a call to the files, of which one on FUSE might never answer."""
    found = set[int]()
    for argument in _DESCRIPTORS.get(waiter.call.nr, ()):
        with suppress(OSError):
            number = waiter.call.args[argument]
            told = Path(f"/proc/{waiter.tgid}/fdinfo/{number}").read_text()
            found |= {int(inode) for inode in re.findall(r"^ino:\s*(\d+)", told, re.M)}
    return found


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
