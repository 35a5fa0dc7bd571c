"""Decodes datagrams of the control socket to requests, and builds failures."""

from __future__ import annotations

import array
import socket
from typing import Any

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.protocol import codec, fixed
from sealsvc.protocol.base import MAX_FDS, MAX_MESSAGE, VERSION
from sealsvc.protocol.messages import AnyRequest, Failure


def descriptors_of(ancillary: list[Any]) -> list[int]:
    """The descriptors in the ancillary data of recvmsg(2), which the caller owns."""
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    return list(fds)


class _Envelope(msgspec.Struct):
    id: Any = None
    v: Any = VERSION
    op: Any = None


def id_of(data: bytes) -> int | None:
    """The id of a request that may be malformed otherwise; None when it has no valid one."""
    if fixed.is_fixed(data):
        return fixed.id_of(data)
    try:
        found = msgspec.json.decode(data, type=_Envelope).id
    except msgspec.DecodeError:
        return None
    return found if type(found) is int and 0 <= found <= 2**53 else None


def parse(data: bytes, flags: int, descriptors: int) -> AnyRequest:
    """Decode a request. `flags` are those of recvmsg(2), `descriptors` is the number received.
    Raises Refusal: too-large, limit-reached, unsupported-version, unknown-operation or
    bad-request."""
    if flags & socket.MSG_TRUNC:
        raise Refusal("too-large", f"a message may have {MAX_MESSAGE} bytes")
    if descriptors > MAX_FDS:
        raise Refusal("too-large", f"a message may carry {MAX_FDS} descriptors")
    if flags & socket.MSG_CTRUNC:
        raise Refusal(
            "limit-reached",
            "the service has no room for the descriptors that were sent (RLIMIT_NOFILE)",
            retry_after=1.0,
        )
    if fixed.is_fixed(data):
        return fixed.request(data)
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        if envelope.v != VERSION:
            raise Refusal(
                "unsupported-version",
                f"version {envelope.v!r} is not spoken here; version {VERSION} is",
                {"versions": [VERSION]},
            )
        return codec.request(data)
    except msgspec.ValidationError as error:
        if "Invalid value" in str(error) and "$.op" in str(error):
            raise Refusal("unknown-operation", str(error)) from None
        raise Refusal("bad-request", str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refusal("bad-request", f"not a JSON object: {error}") from None


def failure(request: int | None, refusal: Refusal) -> Failure:
    """The answer to the request with this id (None: not known) that was refused."""
    return Failure(
        id=request,
        code=refusal.code,
        message=refusal.message,
        details=refusal.details,
        retry_after=refusal.retry_after,
    )
