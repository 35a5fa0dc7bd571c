"""The control socket: SOCK_SEQPACKET, one JSON message in each datagram, with descriptors as
ancillary data (SCM_RIGHTS).

In one turn of the event loop a few messages of each user (uid) are read, however many connections
it has (turns.py). Sockets are closed in threads of their user, because their queues may still hold
descriptors, of which unix_destruct_scm drops the last reference.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sealsvc.control.connection import Connection, Handler
from sealsvc.control.framing import failure
from sealsvc.control.turns import Turns
from sealsvc.core.errors import Refusal
from sealsvc.linux import processes
from sealsvc.linux.processes import Peer
from sealsvc.protocol import codec
from sealsvc.runtime import activation
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.users import User, Users

log = logging.getLogger(__name__)

_ACCEPTING = 0.0002  # seconds of one turn of the loop in which connections are accepted
# Connections that wait to be accepted: who comes after them waits for all of them. A connect(2)
# that finds no room blocks until there is some.
_BACKLOG = 128
_RESERVED = 64  # connections that only operators may have
_ACCEPT_PAUSE = 0.1  # seconds for which nothing is accepted when no descriptor is left


class ControlServer:
    """Listens on the control socket, and owns the connections."""

    def __init__(
        self,
        path: str,
        mode: int,
        handler: Handler,
        events: EventLog,
        tasks: Tasks,
        may_watch: Callable[[Peer], bool],
        users: Users,
    ) -> None:
        """`path` and `mode` are those of the socket. `handler` answers requests. `may_watch` tells
        whether a peer is an operator: operators may watch events, and have reserved connections."""
        self.path, self.mode, self.handler = Path(path), mode, handler
        self.events, self.tasks, self.may_watch, self.users = events, tasks, may_watch, users
        self.turns = Turns()
        self.connections: set[Connection] = set()
        self._most = min(
            users.section.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
        )
        self._sock: socket.socket | None = None
        self._passed = False

    def start(self) -> None:
        """Listen, on the socket that systemd passed or on a new one. Raises Refusal when another
        service listens at the path, and OSError."""
        sock = activation.control_socket(self.path)
        self._passed = sock is not None
        self._sock = sock or self._bind()
        asyncio.get_running_loop().add_reader(self._sock, self._acceptable)

    def _bind(self) -> socket.socket:
        """Make the socket. One that a previous service left is replaced; if a service answers on
        it, that is an error."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_if_served()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        sock.setblocking(False)
        with suppress(FileNotFoundError):
            self.path.unlink()
        sock.bind(str(self.path))
        self.path.chmod(self.mode)
        sock.listen(_BACKLOG)
        return sock

    def _refuse_if_served(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe, suppress(OSError):
            probe.connect(str(self.path))
            raise Refusal("io-error", f"another service answers on {self.path}")

    def _acceptable(self) -> None:
        assert self._sock is not None
        refused: dict[
            int, tuple[str, bytes]
        ] = {}  # by uid: the limit that is reached, and the answer
        end = time.monotonic() + _ACCEPTING
        while time.monotonic() < end:
            try:
                fd, _ = self._sock._accept()  # type: ignore[attr-defined] # accept() is slow: enums
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._cannot_accept(error)
                break
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
            sock.setblocking(False)
            peer = processes.peer_of(sock)
            user = self.users.of(peer.uid)
            if peer.uid not in refused:
                try:
                    self._admit(peer, user)
                except Refusal as refusal:
                    told = codec.encoded(failure(None, refusal))
                    refused[peer.uid] = (refusal.details["limit"], told)
                else:
                    self._accepted(sock, peer, user)
                    continue
            else:
                self.users.overruns.counts[refused[peer.uid][0]] += 1
            with suppress(OSError):
                sock.send(refused[peer.uid][1])
            self.users.count(user, "connections")  # until it is closed
            user.sockets.add([sock.detach()])

    def _accepted(self, sock: socket.socket, peer: Peer, user: User) -> None:
        try:
            connection = Connection(sock, self, peer, user)
            connection.start()
        except (Refusal, OSError) as error:  # the peer has ended already
            log.info("a client left before it was known: %s", error)
            self.disconnect(sock, user)
            return
        self.connections.add(connection)

    def _admit(self, peer: Peer, user: User) -> None:
        """Count the connection. Raises Refusal `limit-reached`; the caller then answers with it and
        closes. A connection that was left in the backlog instead would take the place of others,
        whose connect(2) would block."""
        room = self._most - (0 if self.may_watch(peer) else min(_RESERVED, self._most // 4))
        if self.users.connections >= room:
            self.users.refuse(user, "connections", room)
        self.users.take(user, "connections")

    def _cannot_accept(self, error: OSError) -> None:
        """Log the error. If no descriptor or memory is left, stop accepting for _ACCEPT_PAUSE: the
        socket stays readable, and the loop would spin."""
        log.error("accept on %s: %s", self.path, error)
        if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
            return
        reason = f"no connection can be accepted: {error.strerror}"
        self.users.overruns.add(-1, reason, self.users.connections)
        loop = asyncio.get_running_loop()
        assert self._sock is not None
        loop.remove_reader(self._sock)
        loop.call_later(_ACCEPT_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().add_reader(self._sock, self._acceptable)

    def disconnect(self, sock: socket.socket, user: User) -> None:
        """Shut the socket down, which the peer sees at once, and close it in a thread of the user.
        Until then it counts as a connection."""
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        user.sockets.add([sock.detach()])

    def stop(self) -> None:
        """Close all connections, and the socket."""
        for connection in tuple(self.connections):
            connection.close()
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None
            if self._passed:
                return  # systemd, which passed it, continues to listen
            with suppress(FileNotFoundError):
                self.path.unlink()
