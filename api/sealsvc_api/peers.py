"""Who is at the other end of a connection, as the kernel or TLS vouches for it.

uvicorn tells an application the peer's address alone. http_protocol.py asks for the rest when a
connection is made, and puts it into the ASGI state of each request.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Any

STATE = "sealsvc.peer"


@dataclass(frozen=True, slots=True)
class Peer:
    """`uid` is None on a network connection; `certificate` are the names of a client certificate
    that the configured authority signed."""

    uid: int | None = None
    gids: frozenset[int] = frozenset()
    certificate: frozenset[str] = frozenset()


def peer_of(transport: asyncio.BaseTransport) -> Peer:
    tls = transport.get_extra_info("ssl_object")
    if tls is not None:
        return Peer(certificate=_names(tls))
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family == socket.AF_UNIX:
        return _unix_peer(sock)
    return Peer()


def _unix_peer(sock: Any) -> Peer:
    _, uid, gid = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    try:
        # The groups of the user's entry: those of the process at connect(2) are not told by
        # SO_PEERCRED, and SO_PEERGROUPS has no Python name.
        groups = os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        groups = [gid]
    return Peer(uid=uid, gids=frozenset(groups))


def _names(tls: ssl.SSLObject) -> frozenset[str]:
    """Subject alternative names (DNS, URI, email) alone: a common name may be anything."""
    certificate: dict[str, Any] = tls.getpeercert() or {}
    wanted = ("DNS", "URI", "email")
    return frozenset(v for k, v in certificate.get("subjectAltName", ()) if k in wanted)
