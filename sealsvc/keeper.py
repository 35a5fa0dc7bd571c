"""The keeper, seen from the service: the process that outlives it (native/keeper).

It owns the fanotify gate, and keeps descriptors by name: what a dead service leaves behind goes on
being enforced, and the next one finds it. One service owns a keeper at a time.
"""

from __future__ import annotations

import array
import errno
import mmap
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sealsvc.errors import Refusal
from sealsvc.model import FileId
from sealsvc.native import ffi, lib

_TRIES, _PAUSE = 100, 0.05  # seconds between
_REPLY = ffi.sizeof("struct keeper_reply")
_NAMES = lib.KEEPER_BATCH * lib.KEEPER_NAME
_REPORT = ffi.sizeof("struct seal_report")
_RING_REPORT = ffi.sizeof("struct seal_ring_report")
assert _REPORT != _RING_REPORT, "their sizes tell them apart"
_CONTROL = socket.CMSG_SPACE(lib.KEEPER_BATCH * 4)


class KeeperError(OSError):
    """The keeper said no (its errno)."""


class KeeperGone(Refusal):
    """The keeper has ended, or was killed."""

    def __init__(self, path: str) -> None:
        super().__init__("io-error", f"the keeper at {path} is gone")


@dataclass(frozen=True, slots=True)
class WatchedFile:
    device: int
    inode: int
    block_size: int
    reflink: bool
    fd: int  # O_PATH; the caller's


@dataclass(frozen=True, slots=True)
class KeptGuard:
    device: int
    inode: int
    id: int
    policy: int
    backed: bool


class Keeper:
    """A connection. Any thread may call; calls are answered in order and never wait for anybody."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            raise
        self.reports: socket.socket | None = None
        self.on_ring: Callable[[Any], None] = _nobody  # struct seal_ring_report
        self.on_unproven: Callable[[Any], None] = _nobody  # struct seal_report
        self.on_touched: Callable[[Any], None] = _nobody  # struct seal_report

    def close(self) -> None:
        """Nothing that is guarded or kept is let go by this."""
        self._sock.close()
        if self.reports is not None:
            self.reports.close()
            self.reports = None

    def own(self) -> None:
        """Become the owner; raises Refusal while another service is."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                self._call(lib.KEEPER_OWN, fd=theirs.fileno(), argument=lib.KEEPER_VERSION)
            except BaseException as error:
                ours.close()
                if isinstance(error, KeeperError) and error.errno == errno.EBUSY:
                    raise Refusal(
                        "io-error", f"another service owns the keeper at {self.path}"
                    ) from None
                raise
        self.reports = ours

    # The gate

    def gate_error(self) -> int:
        """0, or the errno for which this kernel has no gate."""
        try:
            self._call(lib.KEEPER_GATE)
        except KeeperError as error:
            return error.errno or errno.EIO
        return 0

    def arm(self, fd: int) -> None:
        self._call(lib.KEEPER_ARM, fd=fd)

    def watch(self, fd: int, block_size: int, reflink: bool) -> None:
        traits = {"block_size": block_size, "reflink": int(reflink)}
        self._call(lib.KEEPER_WATCH, fd=fd, traits=traits)

    def unwatch(self, device: int, inode: int) -> None:
        self._call(lib.KEEPER_UNWATCH, device=device, inode=inode)

    def guard(self, device: int, inode: int, guard: dict[str, int]) -> None:
        self._call(lib.KEEPER_GUARD, device=device, inode=inode, guard=guard)

    def unguard(self, device: int, inode: int, guard: int) -> None:
        with suppress(KeeperError):  # it is gone already: nothing is guarded, as asked
            self._call(lib.KEEPER_UNGUARD, device=device, inode=inode, id=guard)

    def passages(self, device: int, inode: int) -> int:
        """Operations let through that may still be changing a map of this file."""
        return self._call(lib.KEEPER_PASSAGES, device=device, inode=inode)

    def own_events(self, device: int, inode: int) -> int:
        return self._call(lib.KEEPER_OWN_EVENTS, device=device, inode=inode)

    def replay(self) -> None:
        """Have what is held reported once more."""
        self._call(lib.KEEPER_REPLAY)

    def read_reports(self, seconds: float) -> Iterator[Any]:
        """struct seal_report, as many as wait and can be handled within `seconds`. Each is valid
        until the next is taken. Those about rings go to `on_ring` and `on_unproven` instead, those
        of the tripwire to `on_touched`, in their turn."""
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
                self.on_ring(ring_report)
            elif report.kind == lib.SEAL_REPORT_UNPROVEN:
                self.on_unproven(report)
            elif report.kind == lib.SEAL_REPORT_TOUCHED:
                self.on_touched(report)
            else:
                yield report

    def snapshot(self) -> tuple[list[WatchedFile], list[KeptGuard]]:
        """Everything that is watched and guarded. The descriptors are the caller's."""
        fds: list[int] = []
        self._call(lib.KEEPER_SNAPSHOT, received=fds)
        try:
            with mmap.mmap(fds[0], 0, access=mmap.ACCESS_READ) as table:
                files, guards = _parse_snapshot(bytes(table))
        finally:
            os.close(fds[0])
        found: list[int] = []
        while len(found) < len(files):
            before = len(found)
            self._call(lib.KEEPER_FILES, id=before, received=found)
            if len(found) == before:
                raise Refusal("internal", "the keeper's files changed while they were listed")
        return [WatchedFile(*file, fd) for file, fd in zip(files, found, strict=True)], guards

    def counters(self) -> dict[str, int]:
        reply = self._exchange(lib.KEEPER_COUNT)
        names = (
            *("events", "own", "passed", "held", "refused", "failed_answers"),
            *("waiters", "crowded", "lost_looks", "dropped_reports"),
        )
        return {name: int(getattr(reply.counters, name)) for name in names}

    def prover(self, fd: int) -> None:
        """The BPF program that knows who maps a file: the gate runs it as well."""
        with suppress(KeeperError):  # it has no gate, or is older than this
            self._call(lib.KEEPER_PROVER, fd=fd)

    def absolve(self, waiter: int, guard: int) -> None:
        """It is proven that nothing is left of what a registration's seals kept of the range that
        a held operation would change."""
        with suppress(KeeperError):  # its caller was killed meanwhile
            self._call(lib.KEEPER_ABSOLVE, id=waiter, guard={"id": guard})

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
        """One of KEEPER_RING_*, with the fields of struct keeper_ring_request. What waits on
        `file_id` is judged anew."""
        where = {"device": file_id.device, "inode": file_id.inode} if file_id else {}
        ring = {"op": op, **fields}
        return self._call(lib.KEEPER_RING, fd=fd, received=received, ring=ring, **where)

    # Descriptors by name

    def keep(self, name: str, fd: int) -> None:
        """A duplicate of `fd` outlives this process. One of the same name is replaced."""
        self._call(lib.KEEPER_KEEP, fd=fd, name=name)

    def drop(self, name: str) -> None:
        with suppress(KeeperError):
            self._call(lib.KEEPER_DROP, name=name)

    def kept(self) -> dict[str, int]:
        """Descriptors by name; they are the caller's."""
        found: dict[str, int] = {}
        while True:
            fds: list[int] = []
            names: list[bytes] = []
            total = self._call(lib.KEEPER_KEPT, id=len(found), received=fds, names=names)
            found |= {name.decode(): fd for name, fd in zip(names, fds, strict=True)}
            if len(found) >= total or not fds:
                return found

    # The end

    def leave(self, but: str) -> bool:
        """End the keeper when nothing is guarded, nor kept but the descriptor named `but`."""
        return self._call(lib.KEEPER_LEAVE, name=but) == 1

    def release(self) -> None:
        """Let everything go that is guarded, held or kept, and end the keeper."""
        self._call(lib.KEEPER_RELEASE)

    # Messages

    def _call(self, op: int, **fields: Any) -> int:
        reply = self._exchange(op, **fields)
        if reply.result < 0:
            error = -int(reply.result)
            raise KeeperError(error, os.strerror(error))
        return int(reply.result)

    def _exchange(
        self,
        op: int,
        *,
        fd: int = -1,
        received: list[int] | None = None,
        names: list[bytes] | None = None,
        name: str = "",
        **fields: Any,
    ) -> Any:
        encoded = name.encode()
        if len(encoded) >= lib.KEEPER_NAME:
            raise ValueError(f"the name {name!r} is too long to be kept")
        request = ffi.new("struct keeper_request *", {"op": op, "name": encoded, **fields})
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        with self._lock:
            try:
                self._sock.sendmsg([ffi.buffer(request)], rights)
                data, ancillary, _, _ = self._sock.recvmsg(
                    _REPLY + (_NAMES if names is not None else 0),
                    _CONTROL if received is not None else 0,
                    socket.MSG_CMSG_CLOEXEC,
                )
            except OSError as error:
                raise KeeperGone(self.path) from error
        if len(data) < _REPLY:
            raise KeeperGone(self.path)
        reply = ffi.new("struct keeper_reply *")
        ffi.memmove(reply, data, _REPLY)
        fds = array.array("i")
        for _, _, payload in ancillary:
            fds.frombytes(payload)
        if received is not None and len(fds) != reply.count:
            # The kernel delivers the message without those that the process has no number left
            # for. What came is of no use without the others.
            for stray in fds:
                os.close(stray)
            raise KeeperError(
                errno.EMFILE,
                f"of {reply.count} descriptors {len(fds)} could be received: the limit is"
                f" {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}",
            )
        if received is None:
            for stray in fds:
                os.close(stray)
        else:
            received += fds
        if names is not None:
            width = lib.KEEPER_NAME
            for at in range(_REPLY, _REPLY + len(fds) * width, width):
                names.append(data[at : at + width].split(b"\0", 1)[0])
        return reply


def _nobody(report: Any) -> None:
    raise RuntimeError(f"a report before start: {report}")


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


def connect(path: str) -> Keeper:
    """The keeper at `path`; one is started when there is none."""
    try:
        return Keeper(path)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [_program(), path], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise Refusal("io-error", f"the keeper does not start: {done.stderr.strip()}")
    return Keeper(path)


def own(path: str) -> Keeper:
    """The keeper at `path`, owned. One that was just about to end is waited for."""
    for _ in range(_TRIES):
        keeper = connect(path)
        try:
            keeper.own()
            return keeper
        except KeeperGone:
            keeper.close()
            time.sleep(_PAUSE)
        except BaseException:
            keeper.close()
            raise
    raise KeeperGone(path)


def release_all(path: str) -> bool:
    """End the keeper at `path` with everything it holds. False when there is none. Raises
    KeeperError (EBUSY) while a service owns it."""
    try:
        keeper = Keeper(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    try:
        keeper.release()
    except KeeperGone:  # it was about to end
        pass
    finally:
        keeper.close()
    return True


def _program() -> str:
    beside = Path(sys.executable).with_name("sealsvc-keeper")
    found = str(beside) if beside.exists() else shutil.which("sealsvc-keeper")
    if not found:
        raise Refusal("io-error", "sealsvc-keeper is not installed")
    return found
