"""The control socket as systemd passes it (sd_listen_fds(3)): clients that connect while the
service is restarted or upgraded wait in its backlog."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from sealsvc.errors import Refusal

FIRST = 3  # SD_LISTEN_FDS_START


def passed(path: Path) -> socket.socket | None:
    """The listening socket that was passed, which must be the one at `path`. None: none was."""
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()):
        return None  # not meant for us, but for whoever started us
    count = int(os.environ.pop("LISTEN_FDS", "0"))
    os.environ.pop("LISTEN_FDNAMES", None)
    for fd in range(FIRST, FIRST + count):
        os.set_inheritable(fd, False)
    if count == 0:
        return None
    if count > 1:
        raise Refusal("io-error", f"{count} sockets were passed: one is the control socket")
    try:
        sock = socket.socket(fileno=FIRST)
        kind = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise Refusal("io-error", f"what was passed is no socket: {error.strerror}") from None
    if sock.family != socket.AF_UNIX or kind != socket.SOCK_SEQPACKET or not listening:
        sock.close()
        raise Refusal("io-error", "the passed socket must be ListenSequentialPacket= at a path")
    # Two truths about where the service is would be one too many: clients and the keeper's place
    # follow the configuration.
    if (name := sock.getsockname()) != str(path):
        sock.close()
        raise Refusal("io-error", f"the passed socket is {name}; service.socket says {path}")
    sock.setblocking(False)
    return sock
