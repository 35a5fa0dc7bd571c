"""Socket activation: listening sockets that systemd passes (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from sealsvc.core.errors import Refusal

FIRST = 3  # SD_LISTEN_FDS_START


def listeners() -> list[socket.socket]:
    """The sockets that were passed to this process. The environment variables are removed, so that
    no child process takes them as meant for it. Raises Refusal `io-error` when a descriptor is not
    a socket."""
    meant = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    os.environ.pop("LISTEN_FDNAMES", None)
    if not meant:
        return []
    for fd in range(FIRST, FIRST + count):
        os.set_inheritable(fd, False)
    try:
        return [socket.socket(fileno=fd) for fd in range(FIRST, FIRST + count)]
    except OSError as error:
        raise Refusal("io-error", f"what was passed is no socket: {error.strerror}") from None


def control_socket(path: Path) -> socket.socket | None:
    """The control socket, if systemd passed one: clients that connect while the service is
    restarted or upgraded wait in its backlog. None when none was passed. Raises Refusal `io-error`
    unless it is one listening SOCK_SEQPACKET socket at `path`."""
    found = listeners()
    if not found:
        return None
    if len(found) > 1:
        raise Refusal("io-error", f"{len(found)} sockets were passed: one is the control socket")
    [sock] = found
    kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family != socket.AF_UNIX or kind != socket.SOCK_SEQPACKET or not listening:
        sock.close()
        raise Refusal("io-error", "the passed socket must be ListenSequentialPacket= at a path")
    # It must be where the configuration says, because clients and the keeper's path depend on that.
    if (name := sock.getsockname()) != str(path):
        sock.close()
        raise Refusal("io-error", f"the passed socket is {name}; service.socket says {path}")
    sock.setblocking(False)
    return sock
