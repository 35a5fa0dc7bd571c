"""Processes as holders: a pidfd, and the identity that outlives a reused pid."""

from __future__ import annotations

import functools
import os
import re
import select
import signal
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Holder
from sealsvc.linux import native, proc_stat

SO_PEERPIDFD = 77  # since v6.5 (asm-generic/socket.h); Python 3.11 has no name for it


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a control connection, as the kernel vouches for it."""

    pid: int
    uid: int
    gid: int


@dataclass(slots=True)
class Process:
    """A process that cannot be mistaken for another. `pidfd` (-1: the process is gone) is closed by
    the last of those who share this object: a process may have very many seals."""

    holder: Holder
    pidfd: int
    users: int = 1

    @property
    def lives(self) -> bool:
        return not self.ended

    def share(self) -> Process:
        self.users += 1
        return self

    def signal(self, number: signal.Signals) -> bool:
        """False when the process is gone."""
        if self.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return False
        return True

    @property
    def ended(self) -> bool:
        """With all of its threads; a zombie has ended."""
        return self.pidfd < 0 or has_ended(self.pidfd)

    def close(self) -> None:
        self.users -= 1
        if self.users <= 0 <= self.pidfd:
            os.close(self.pidfd)
            self.pidfd = -1


def has_ended(pidfd: int) -> bool:
    """A pidfd can be read from when the process, with all of its threads, has ended."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def peer_of(sock: socket.socket) -> Peer:
    pid, uid, gid = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return Peer(pid, uid, gid)


def _describe(pid: int) -> Holder:
    try:
        stat = proc_stat.read(pid)
        uid = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        raise Refusal("no-such-holder", f"process {pid} does not exist", {"pid": pid}) from None
    return Holder(pid=pid, start_time=stat.start_time, uid=uid, comm=stat.comm)


def by_pid(pid: int) -> Process:
    """The process that has `pid` now."""
    try:
        pidfd = native.pidfd_open(pid)
    except OSError:
        raise Refusal("no-such-holder", f"process {pid} does not exist", {"pid": pid}) from None
    return by_pidfd(pidfd)


def again(holder: Holder) -> Process:
    """The process that `holder` describes, found anew."""
    try:
        process = by_pid(holder.pid)
    except Refusal:
        return Process(holder, -1)
    if process.holder.start_time != holder.start_time:  # another has the pid now
        process.close()
    return Process(holder, process.pidfd)


def by_pidfd(pidfd: int) -> Process:
    """Takes `pidfd`, which the kernel made for us, over, also when it fails."""
    try:
        return Process(holder_of(pidfd), pidfd)
    except BaseException:
        os.close(pidfd)
        raise


def holder_of(pidfd: int) -> Holder:
    """The process of a descriptor that somebody says is a pidfd."""
    info = Path(f"/proc/self/fdinfo/{pidfd}").read_text(errors="replace")
    found = re.search(r"^Pid:\s*(-?\d+)", info, re.M)
    if not found:
        raise Refusal("bad-request", "the descriptor sent as a pidfd is not one")
    gone = Refusal("no-such-holder", "the process of the pidfd has exited")
    if int(found[1]) <= 0:
        raise gone
    # The pid is the pidfd's while the process lives, and only then can it be signalled.
    holder = _describe(int(found[1]))
    try:
        with suppress(PermissionError):  # somebody else's lives as well
            signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        raise gone from None
    return holder


@functools.cache
def has_peer_pidfd() -> bool:
    """Whether the kernel has SO_PEERPIDFD: then of_socket() is exact, however late."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            os.close(ours.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
        except OSError:
            return False
    return True


def of_socket(sock: socket.socket) -> Process:
    """The process that opened the connection; exact where the kernel has SO_PEERPIDFD. Raises
    Refusal `no-such-holder`."""
    if not has_peer_pidfd():
        return by_pid(peer_of(sock).pid)
    try:
        pidfd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError:
        raise Refusal("no-such-holder", "the process that connected has ended") from None
    return by_pidfd(pidfd)
