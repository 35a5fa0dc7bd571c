"""The service's connection to the keeper, the process that outlives it (native/keeper).

The keeper owns the fanotify gate, and keeps descriptors by name. What a service leaves behind stays
enforced, and the next service finds it. One service owns a keeper at a time.
"""

from __future__ import annotations

import array
import errno
import hashlib
import logging
import mmap
import os
import resource
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.model import FileId
from sealsvc.linux import processes
from sealsvc.linux.native import ffi, lib

log = logging.getLogger(__name__)

_TRIES, _PAUSE = 100, 0.05  # _PAUSE: seconds between two tries
_HANGS_UP = 20  # tries after which a keeper that hangs up is taken to be older than GREETS
GREETS = 5  # the first version that knows struct keeper_hello
_ENDING = 10.0  # seconds in which a keeper must end
_REPLY = ffi.sizeof("struct keeper_reply")
_NAMES = lib.KEEPER_BATCH * lib.KEEPER_NAME
_REPORT = ffi.sizeof("struct seal_report")
_RING_REPORT = ffi.sizeof("struct seal_ring_report")
assert _REPORT != _RING_REPORT, "their sizes tell them apart"
_CONTROL = socket.CMSG_SPACE(lib.KEEPER_BATCH * 4)


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


class KeeperError(OSError):
    """The keeper refused a request, with this errno."""


class KeeperUnlike(Refusal):
    """The keeper speaks another version of the protocol, and keeps seals."""

    def __init__(self, path: str, theirs: str) -> None:
        super().__init__(
            "io-error",
            f"the keeper at {path}, {theirs}, does not speak version {lib.KEEPER_VERSION} of this"
            " sealsvc, and keeps seals: start the sealsvc that started it, or end them with the"
            " `sealsvc release --all` of that one",
        )


@dataclass(frozen=True, slots=True)
class Greeting:
    """The answer to a hello. `result` is 0 (for LEAVE 1: it ends) or -errno."""

    result: int
    version: int
    pid: int


class KeeperOwned(Refusal):
    """Another service owns the keeper."""

    def __init__(self, path: str) -> None:
        super().__init__("io-error", f"another service owns the keeper at {path}")


class KeeperGone(Refusal):
    """The keeper has ended, or was killed."""

    def __init__(self, path: str) -> None:
        super().__init__("io-error", f"the keeper at {path} is gone")


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


class Keeper:
    """A connection to the keeper. Any thread may use it. Calls are answered in order, and the
    keeper waits for nobody to answer one; but if it is stopped, a call blocks until it runs again.

    Methods raise KeeperError when the keeper refuses a request, KeeperGone when it has ended.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._sock = _connected(path)
        self.silent = False  # true while the keeper does not answer (keeper_watch.py)
        self.reports: socket.socket | None = None

    @property
    def pid(self) -> int:
        """The keeper's pid. It need not answer for this."""
        return processes.peer_of(self._sock).pid

    def close(self) -> None:
        """Close the connection. Guards and kept descriptors stay with the keeper."""
        self._sock.close()
        if self.reports is not None:
            self.reports.close()
            self.reports = None

    def own(self) -> None:
        """Become the owner, which gets the reports. Raises KeeperOwned while another service is."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                self._call(lib.KEEPER_OWN, fd=theirs.fileno(), argument=lib.KEEPER_VERSION)
            except BaseException as error:
                ours.close()
                if isinstance(error, KeeperError) and error.errno == errno.EBUSY:
                    raise KeeperOwned(self.path) from None
                raise
        self.reports = ours

    def greet(self, op: int = lib.KEEPER_HELLO_ASK, timeout: float = 5.0) -> Greeting | None:
        """Identify the keeper, or tell it to end, in a message that every version from GREETS on
        understands. None when it hangs up: it is older, or was about to end. Raises Refusal when no
        answer comes in `timeout` seconds."""
        hello = ffi.new("struct keeper_hello *", {"op": op, "version": lib.KEEPER_VERSION})
        greeting = ffi.new("struct keeper_greeting *")
        with self._lock:
            self._sock.settimeout(timeout)
            try:
                self._sock.send(ffi.buffer(hello))
                size = self._sock.recv_into(ffi.buffer(greeting))
            except TimeoutError:
                raise Refusal(
                    "io-error",
                    f"the keeper at {self.path} does not answer: is its process stopped?",
                ) from None
            except OSError:
                return None
            finally:
                self._sock.settimeout(None)
        if size != ffi.sizeof("struct keeper_greeting"):
            return None
        return Greeting(greeting.result, greeting.version, greeting.pid)

    def has_ended(self, timeout: float) -> bool:
        """Whether the keeper hangs up, or sends anything, within `timeout` seconds."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    # The gate

    def gate_error(self) -> int:
        """0, or the errno with which this kernel refused the gate."""
        try:
            self._call(lib.KEEPER_GATE)
        except KeeperError as error:
            return error.errno or errno.EIO
        return 0

    def arm(self, fd: int) -> None:
        """Watch the file system of `fd`, so that descriptors opened from now on are seen."""
        self._call(lib.KEEPER_ARM, fd=fd)

    def refuse_overlays(self, fd: int) -> bool:
        """Refuse overlays of unprivileged users on the file system of `fd` from now on. True when
        they were refused already."""
        return self._call(lib.KEEPER_REFUSE_OVERLAYS, fd=fd) > 0

    def overlays_refused(self) -> int:
        """Number of overlay mounts that were refused so far."""
        return self._call(lib.KEEPER_OVERLAYS_REFUSED)

    def watch(self, fd: int, block_size: int, reflink: bool) -> None:
        """Watch the file of `fd`; its file system has blocks of `block_size` bytes."""
        traits = {"block_size": block_size, "reflink": int(reflink)}
        self._call(lib.KEEPER_WATCH, fd=fd, traits=traits)

    def unwatch(self, device: int, inode: int) -> None:
        self._call(lib.KEEPER_UNWATCH, device=device, inode=inode)

    def guard(self, device: int, inode: int, guard: dict[str, int]) -> None:
        """Add or change a guard on a watched file; `guard` has the fields of struct seal_guard."""
        self._call(lib.KEEPER_GUARD, device=device, inode=inode, guard=guard)

    def unguard(self, device: int, inode: int, guard: int) -> None:
        """Remove the guard with this token. Ignored when there is none."""
        with suppress(KeeperError):  # the guard is gone already
            self._call(lib.KEEPER_UNGUARD, device=device, inode=inode, id=guard)

    def passages(self, device: int, inode: int) -> int:
        """Number of operations that were let through and may still change the file's map."""
        return self._call(lib.KEEPER_PASSAGES, device=device, inode=inode)

    def own_events(self, device: int, inode: int) -> int:
        """Number of events on the file from processes that pass unjudged, such as the service."""
        return self._call(lib.KEEPER_OWN_EVENTS, device=device, inode=inode)

    def replay(self) -> None:
        """Have the operations that are held reported again."""
        self._call(lib.KEEPER_REPLAY)

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
        """The gate's counters by name; `waiters` is the number of operations that are held."""
        reply = self._exchange(lib.KEEPER_COUNT)
        names = (
            *("events", "own", "passed", "held", "refused", "failed_answers"),
            *("waiters", "crowded", "lost_looks", "dropped_reports"),
        )
        return {name: int(getattr(reply.counters, name)) for name in names}

    def prover(self, fd: int) -> None:
        """Give the gate the BPF program that tells whether anybody maps a file (proof.bpf.c)."""
        with suppress(KeeperError):  # it has no gate, or its version does not know this
            self._call(lib.KEEPER_PROVER, fd=fd)

    def absolve(self, waiter: int, guard: int) -> None:
        """Clear the range that the held operation `waiter` would change in the registration
        `guard`: it is proven that nothing of it is mapped."""
        with suppress(KeeperError):  # the operation's caller was killed meanwhile
            self._call(lib.KEEPER_ABSOLVE, id=waiter, guard={"id": guard})

    def canary(self, fd: int, trials: int) -> tuple[int, int]:
        """Set the file on which the keeper tries, every second, operations that BPF programs must
        refuse; `trials` is a mask of KEEPER_CANARY_*. -1 ends the trials. Returns how often
        operations on the previous file began to pass, and the mask of the trials that pass now."""
        said = self._call(lib.KEEPER_CANARY_SET, fd=fd, argument=trials)
        return said >> 32, said & 0xFFFFFFFF

    def try_canary(self) -> tuple[int, int]:
        """Try the operations now. Returns how often they began to pass, and the mask of those that
        pass now."""
        said = self._call(lib.KEEPER_CANARY)
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
        return self._call(lib.KEEPER_RING, fd=fd, received=received, ring=ring, **where)

    # Descriptors by name

    def keep(self, name: str, fd: int) -> None:
        """Have the keeper hold a duplicate of `fd`, instead of an earlier one of that name. Raises
        ValueError for a name of KEEPER_NAME bytes or more."""
        self._call(lib.KEEPER_KEEP, fd=fd, name=name)

    def drop(self, name: str) -> None:
        """Have the keeper close a descriptor. Ignored when it has none of that name."""
        with suppress(KeeperError):
            self._call(lib.KEEPER_DROP, name=name)

    def kept(self) -> dict[str, int]:
        """The kept descriptors by name. The caller closes them."""
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
        """End the keeper if it has no guard, and no descriptor but the one named `but`. True when
        it ends."""
        return self._call(lib.KEEPER_LEAVE, name=but) == 1

    def release(self) -> None:
        """Release all guards, held operations and kept descriptors, and end the keeper."""
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
            # The kernel delivers a message without the descriptors that would exceed the limit of
            # the process. Those that came are of no use without the others.
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


def _name(path: str) -> str:
    """The abstract socket name (unix(7)) of the keeper at a path. The device of the directory is
    part of it, because another /run in the same network namespace has another keeper."""
    device = os.stat(os.path.dirname(path) or ".").st_dev
    digest = hashlib.sha256(f"{device}:{os.path.abspath(path)}".encode()).hexdigest()
    return f"sealsvc-keeper-{digest[:32]}"


def _connected(path: str) -> socket.socket:
    """A socket that is connected to the keeper at its path, or by its abstract name when the path
    was unlinked. Raises FileNotFoundError or ConnectionRefusedError when there is no keeper."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        try:
            sock.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.connect("\0" + _name(path))
            if processes.peer_of(sock).uid != os.geteuid():
                log.warning("a foreign process has the name of the keeper at %s", path)
                raise
            log.warning("%s is gone, but its keeper lives: found by its abstract name", path)
    except BaseException:
        sock.close()
        raise
    return sock


def connect(path: str) -> Keeper:
    """A connection to the keeper at `path`, which is started if there is none. Raises Refusal and
    OSError."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        return Keeper(path)
    except (FileNotFoundError, ConnectionRefusedError):
        pass
    command = [_program(), path, _name(path)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise Refusal("io-error", f"the keeper does not start: {done.stderr.strip()}")
    return Keeper(path)


def own(path: str) -> Keeper:
    """Connect to the keeper at `path` and become its owner. Waits, up to _TRIES * _PAUSE seconds
    besides the calls, for a keeper that is about to end and for a service that is about to leave
    it. Replaces a keeper of another version that keeps nothing. Raises Refusal."""
    hung_up = 0
    last: Refusal = KeeperGone(path)
    for _ in range(_TRIES):
        keeper = connect(path)
        try:
            there = keeper.greet()
            if there is None:
                # A keeper that was about to end hangs up once or twice, an older one every time.
                hung_up += 1
                if hung_up > _HANGS_UP:
                    raise KeeperUnlike(path, f"of a version before {GREETS}")
            elif there.version != lib.KEEPER_VERSION:
                _replace(keeper, there)
            else:
                keeper.own()
                return keeper
        except (KeeperGone, KeeperOwned) as refusal:
            last = refusal
        except BaseException:
            keeper.close()
            raise
        keeper.close()
        time.sleep(_PAUSE)
    raise last


def _replace(keeper: Keeper, there: Greeting) -> None:
    """End a keeper of another version. Raises KeeperUnlike when it keeps anything, KeeperOwned when
    a service owns it."""
    left = keeper.greet(lib.KEEPER_HELLO_LEAVE)
    if left is not None and left.result == -errno.EBUSY:
        raise KeeperOwned(keeper.path)
    if left is None or left.result != 1 or not keeper.has_ended(_ENDING):
        raise KeeperUnlike(keeper.path, f"process {there.pid} of version {there.version}")
    log.info("the keeper of version %d, which kept nothing, was ended", there.version)


def release_all(path: str) -> bool:
    """End the keeper at `path` with everything it holds. False when there is none. Raises
    KeeperError (EBUSY) while a service owns it, Refusal when it lives on."""
    for last in (False, True):
        try:
            keeper = Keeper(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return last
        try:
            there = keeper.greet(lib.KEEPER_HELLO_RELEASE)
            if there is None:
                # It may be older than the hello, or about to end: try the request of this version.
                keeper.close()
                keeper = Keeper(path)
                keeper.release()
            elif there.result < 0:
                raise KeeperError(-there.result, os.strerror(-there.result))
            if keeper.has_ended(_ENDING):
                return True
            raise Refusal("io-error", f"the keeper at {path} has not ended: nothing is certain")
        except (KeeperGone, FileNotFoundError, ConnectionRefusedError):
            time.sleep(_PAUSE)
        finally:
            keeper.close()
    raise Refusal(
        "io-error",
        f"the keeper at {path} does not understand: it is of another version of sealsvc, and"
        " nothing was released. Use the `sealsvc release --all` of that version, or kill the"
        " process, which lets everything go",
    )


def _program() -> str:
    beside = Path(sys.executable).with_name("sealsvc-keeper")
    found = str(beside) if beside.exists() else shutil.which("sealsvc-keeper")
    if not found:
        raise Refusal("io-error", "sealsvc-keeper is not installed")
    return found
