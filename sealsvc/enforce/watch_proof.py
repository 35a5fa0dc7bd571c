"""The proof behind a guard of fanotify: every descriptor of the file is watched, and no operation
that was let through before is under way."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sealsvc.core.errors import Refusal
from sealsvc.core.model import FileId
from sealsvc.enforce import anchors, openers
from sealsvc.enforce.base import Guard
from sealsvc.enforce.keeper import Keeper
from sealsvc.linux import native
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target
from sealsvc.linux.native import lib


@dataclass(slots=True)
class Watched:
    """A file with an fanotify mark. `whole`: every descriptor of it is known to be watched.
    `guards` are by token. `idle_since` is when its last guard was removed (seconds of
    CLOCK_MONOTONIC)."""

    file: FileId
    filesystem: Filesystem
    anchor: int = -1
    whole: bool = False
    guards: dict[int, Guard] = field(default_factory=dict)
    idle_since: float = math.inf


class WatchProof:
    """Proves it, with questions to the keeper. Each wait is at most `timeout` seconds."""

    def __init__(self, keeper: Keeper, timeout: float) -> None:
        self._keeper, self._timeout = keeper, timeout

    def prove(self, target: Target, watched: Watched, guard: Guard) -> None:
        """Prove it for a guard that is in force. Raises Refusal `file-in-use` or `try-later`."""
        others = [g for g in watched.guards.values() if g.token != guard.token]
        if guard.exclusive:
            # Beside another exclusive guard (of the same holder) it was proven before, and nobody
            # else could open the file since.
            if not any(g.exclusive for g in others):
                self._prove_sole(target, watched)
        elif not watched.whole:
            self._prove_watched(target, watched)
        watched.whole = True
        self.drain_in_flight(target.file, target.path)

    def drain_in_flight(self, file: FileId, path: str) -> None:
        """Wait for operations in flight on the file. Raises Refusal `try-later` when they do not
        end within `timeout`."""
        if not self._drained(file):
            raise Refusal(
                "try-later",
                f"an operation that may change the extent map of {path} is under way",
                {"path": path},
                retry_after=0.1,
            )

    def _drained(self, file: FileId) -> bool:
        """Wait until no operation that the gate let through can still change the file's map. False
        when that takes longer than `timeout`."""
        deadline = time.monotonic() + self._timeout
        with as_refusal("drain"):
            while self._keeper.in_flight(file.device, file.inode):
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.0001)
        return True

    def _prove_sole(self, target: Target, watched: Watched) -> None:
        if anchors.is_counted(watched.anchor):
            os.close(watched.anchor)
            watched.anchor = -1
        openers.prove_sole(target, lambda: sorted({o.pid for o in self._foreign(target)}))

    def _prove_watched(self, target: Target, watched: Watched) -> None:
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
            raise openers.in_use(
                target, blind, "their descriptors were opened before the file was watched"
            )
        for pid in {o.pid for o in others}:
            if not lib.seal_drain_process(pid, int(self._timeout * 1e6)):
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
        with as_refusal("watch probe"):
            before = self._keeper.own_events(file.device, file.inode)
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                os.pwrite(fd, b"", 0)
            else:
                os.pread(fd, 0, 0)
            return self._keeper.own_events(file.device, file.inode) != before


@contextmanager
def as_refusal(call: str) -> Iterator[None]:
    """A context that turns an OSError of `call` into Refusal `io-error`."""
    try:
        yield
    except OSError as error:
        raise Refusal(
            "io-error", f"{call}: {error.strerror}", {"call": call, "errno": error.errno}
        ) from error


def _same(opener: native.Opener, fd: int) -> bool:
    try:
        return native.same_description(opener.pid, opener.fd, os.getpid(), fd)
    except OSError:
        return True  # closed or ended meanwhile
