"""Requests to the keeper, and its answers, over one connected socket (native/keeper/keeper.h)."""

from __future__ import annotations

import array
import errno
import hashlib
import logging
import os
import resource
import select
import socket
import threading
from dataclasses import dataclass
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.linux import processes
from sealsvc.linux.native import ffi, lib

log = logging.getLogger(__name__)

VERSION: int = lib.KEEPER_VERSION
GREETS = 5  # the first version that knows struct keeper_hello
_REPLY = ffi.sizeof("struct keeper_reply")
_NAMES = lib.KEEPER_BATCH * lib.KEEPER_NAME
_CONTROL = socket.CMSG_SPACE(lib.KEEPER_BATCH * 4)


class KeeperError(OSError):
    """The keeper refused a request, with this errno."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """The answer to a hello. `result` is 0 (for LEAVE 1: it ends) or -errno."""

    result: int
    version: int
    pid: int


class KeeperGone(Refusal):
    """The keeper has ended, or was killed."""

    def __init__(self, path: str) -> None:
        super().__init__("io-error", f"the keeper at {path} is gone")


class KeeperSocket:
    """A connection to the keeper. Any thread may use it. Calls are answered in order, and the
    keeper waits for nobody to answer one; but if it is stopped, a call blocks until it runs again.

    Methods raise KeeperError when the keeper refuses a request, KeeperGone when it has ended.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._sock = _connected(path)

    @property
    def pid(self) -> int:
        """The keeper's pid. It need not answer for this."""
        return processes.peer_of(self._sock).pid

    def close(self) -> None:
        """Close the connection. Guards and kept descriptors stay with the keeper."""
        self._sock.close()

    def greet(self, op: int = lib.KEEPER_HELLO_ASK, timeout: float = 5.0) -> Greeting | None:
        """Identify the keeper, or tell it to end, in a message that every version from GREETS on
        understands. None when it hangs up: it is older, or was about to end. Raises Refusal when no
        answer comes in `timeout` seconds."""
        hello = ffi.new("struct keeper_hello *", {"op": op, "version": VERSION})
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

    def call(self, op: int, **fields: Any) -> int:
        """Send a request; returns the answer's result. See exchange()."""
        reply = self.exchange(op, **fields)
        if reply.result < 0:
            error = -int(reply.result)
            raise KeeperError(error, os.strerror(error))
        return int(reply.result)

    def exchange(
        self,
        op: int,
        *,
        fd: int = -1,
        received: list[int] | None = None,
        names: list[bytes] | None = None,
        name: str = "",
        **fields: Any,
    ) -> Any:
        """Send a request `op` (KEEPER_*) with the fields of struct keeper_request, and with the
        descriptor `fd`. Returns the answer, a struct keeper_reply; appends the descriptors that
        come with it to `received` (closes them if that is None), and their names to `names`. Raises
        ValueError for a name of KEEPER_NAME bytes or more, KeeperGone, and KeeperError EMFILE when
        not all descriptors could be received."""
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


def name_of(path: str) -> str:
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
            sock.connect("\0" + name_of(path))
            if processes.peer_of(sock).uid != os.geteuid():
                log.warning("a foreign process has the name of the keeper at %s", path)
                raise
            log.warning("%s is gone, but its keeper lives: found by its abstract name", path)
    except BaseException:
        sock.close()
        raise
    return sock
