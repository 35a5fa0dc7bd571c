"""Requests and answers as fixed structs: what libseal, which knows no JSON, sends and understands.

The layouts are those of native/abi/seal_control.h, in the host's byte order. A request becomes the
same message as its JSON form does, and passes the same checks of its fields.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from sealsvc.core import errors
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Fence, IoMode, Kind, Preparation
from sealsvc.protocol.messages import Answer, AnyRequest, Failure, Result
from sealsvc.protocol.pi_device import PiChannel, PiChannelInfo
from sealsvc.protocol.rings import Attach, Attached, Register, Registered
from sealsvc.protocol.seals import Return

MAGIC, VERSION = 0x6C616573, 1
ATTACH, REGISTER, RETURN, PI_CHANNEL = range(1, 5)
FILES, ID = 256, 24  # registrations of a ring, bytes of a seal's id

HEAD = struct.Struct("=IHHQ")
REQUESTS = {
    ATTACH: struct.Struct("=4IQII"),
    REGISTER: struct.Struct("=3Q6I"),
    RETURN: struct.Struct(f"={ID}s"),
    PI_CHANNEL: struct.Struct(f"={ID}sQII"),
}
ERROR = struct.Struct("=iI")
ANSWERS = {
    ATTACH: struct.Struct(f"=QII{FILES * ID}s"),
    REGISTER: struct.Struct(f"=II{ID}s"),
    RETURN: struct.Struct("="),
    PI_CHANNEL: struct.Struct("=6I"),
}

_MARK = MAGIC.to_bytes(4, sys.byteorder)
_TEXT_AFTER = (REGISTER, PI_CHANNEL)
_NS = 1e9

# By the enums of seal.h; 0 stands for the service's default, which is left out.
_IOMODES = ("", IoMode.READ, IoMode.RW)
_KINDS = (Kind.SHARED, Kind.SHARED, Kind.EXCLUSIVE)
_CONFLICTS = ("", Conflict.WAIT, Conflict.REFUSE)
_FENCES = ("", Fence.NONE, Fence.SIGNAL, Fence.KILL)
_PREPARATIONS = (
    Preparation.ALLOCATE, Preparation.CONVERT, Preparation.UNSHARE, Preparation.ALIGN,
)  # fmt: skip


def is_fixed(data: bytes) -> bool:
    """Whether a datagram has this form; JSON begins otherwise."""
    return data.startswith(_MARK)


def id_of(data: bytes) -> int | None:
    """The id of a request that may be malformed otherwise; None when it has none."""
    return HEAD.unpack_from(data)[3] if len(data) >= HEAD.size else None


def request(data: bytes) -> AnyRequest:
    """Raises Refusal: bad-request, unsupported-version or unknown-operation."""
    if len(data) < HEAD.size:
        raise Refusal("bad-request", f"a request has at least {HEAD.size} bytes, not {len(data)}")
    _, version, op, number = HEAD.unpack_from(data)
    if version != VERSION:
        raise Refusal(
            "unsupported-version",
            f"version {version} of libseal's messages is not spoken here; version {VERSION} is",
            {"versions": [VERSION]},
        )
    if (layout := REQUESTS.get(op)) is None:
        raise Refusal("unknown-operation", f"operation {op} of libseal's messages is not known")
    least = HEAD.size + layout.size
    if len(data) < least or (len(data) > least and op not in _TEXT_AFTER):
        raise Refusal("bad-request", f"operation {op} has {least} bytes, not {len(data)}")
    values = layout.unpack_from(data, HEAD.size)
    kind, fields = _READ[op](values, _text(data[least:]))
    try:
        return msgspec.convert({"op": kind, "id": number, **fields}, type=_TYPES[op])
    except msgspec.ValidationError as error:
        raise Refusal("bad-request", str(error)) from None


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Refusal("bad-request", f"a text that is no UTF-8: {error}") from None
    if "\0" in text:
        raise Refusal("bad-request", "a string has a NUL character, which no name and no text may")
    return text


def _attach(values: tuple[Any, ...], _: str) -> tuple[str, dict[str, Any]]:
    slots, commands, events, data, secret, ring, _reserved = values
    fields = {"slots": slots, "commands": commands, "events": events, "data": data}
    return "attach", fields | ({"ring": ring, "secret": f"{secret:016x}"} if secret else {})


def _register(values: tuple[Any, ...], tag: str) -> tuple[str, dict[str, Any]]:
    offset, length, grace, ring, iomode, kind, conflict, fence, prepare = values
    fields = {
        "iomode": _word("iomode", _IOMODES, iomode),
        "kind": _word("kind", _KINDS, kind),
        "conflict": _word("conflict", _CONFLICTS, conflict),
        "fence": _word("fence", _FENCES, fence),
        "length": length,
        "grace": grace / _NS,
        "tag": tag,
    }
    if prepare >> len(_PREPARATIONS):
        raise Refusal("bad-request", f"prepare {prepare:#x} has bits that are not known")
    wanted = [word for bit, word in enumerate(_PREPARATIONS) if prepare >> bit & 1]
    given = {name: value for name, value in fields.items() if value}
    return "register", {"ring": ring, "offset": offset, "prepare": wanted, **given}


def _return(values: tuple[Any, ...], _: str) -> tuple[str, dict[str, Any]]:
    return "return", {"seal": _id(values[0])}


def _pi_channel(values: tuple[Any, ...], profile: str) -> tuple[str, dict[str, Any]]:
    seal, size, ring, _reserved = values
    fields = {"seal": _id(seal), "ring": bool(ring)}
    if size:
        fields["bytes"] = size
    return "pi-channel", fields | ({"profile": profile} if profile else {})


def _id(raw: bytes) -> str:
    return raw.decode("ascii", "replace")


def _word(field: str, words: tuple[str, ...], number: int) -> str:
    if number >= len(words):
        raise Refusal("bad-request", f"{field} {number} is not known; 0 to {len(words) - 1} are")
    return words[number]


_READ: dict[int, Callable[[tuple[Any, ...], str], tuple[str, dict[str, Any]]]] = {
    ATTACH: _attach, REGISTER: _register, RETURN: _return, PI_CHANNEL: _pi_channel,
}  # fmt: skip
_TYPES: dict[int, type[AnyRequest]] = {
    ATTACH: Attach, REGISTER: Register, RETURN: Return, PI_CHANNEL: PiChannel,
}  # fmt: skip


def encoded(message: Answer | Failure) -> bytes:
    """An answer, or a refusal as the errno of its code and a text."""
    if isinstance(message, Answer):
        op, body = _body(message.result)
        return _head(op, message.id, 0) + body
    text = f"{message.code}: {message.message}".replace("\0", "").encode(errors="replace")
    # The operation is not told: it may be one that there is not.
    return _head(0, message.id or 0, errors.TABLE[message.code].errno) + text


def _head(op: int, number: int, error: int) -> bytes:
    return HEAD.pack(MAGIC, VERSION, op, number) + ERROR.pack(error, 0)


def _body(result: Result) -> tuple[int, bytes]:
    match result:
        case Attached():
            files = bytearray(FILES * ID)
            for file, seal in result.files.items():
                files[file * ID : (file + 1) * ID] = seal.encode()
            secret = int(result.secret, 16)
            return ATTACH, ANSWERS[ATTACH].pack(secret, result.ring, 0, bytes(files))
        case Registered():
            named = result.seal.id.encode()
            return REGISTER, ANSWERS[REGISTER].pack(result.file, 0, named)
        case PiChannelInfo(device=path):
            facts = (
                path.interval, path.metadata, path.pi_offset, path.pi_size, path.ref_size,
                path.block,
            )  # fmt: skip
            return PI_CHANNEL, ANSWERS[PI_CHANNEL].pack(*facts)
        case _:
            return RETURN, b""
