"""What the service and the registry's process say to each other over a stream socket: frames of a
length (u32) and a message in msgpack."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import Drift, Operation
from sealsvc.protocol.seals import SealInfo
from sealsvc.registry.chain import escaped
from sealsvc.registry.entries import Entry

THREADS = 4  # of the process for queries

_LENGTH = struct.Struct("=I")
_TYPED = {"operation": Operation, "drift": Drift}  # in the data of an entry


class Record(msgspec.Struct, array_like=True, tag="record"):
    """Record an entry."""

    number: int
    time: float
    kind: str
    seal: str | None
    data: dict[str, Any]
    seals: list[SealInfo]
    maps: list[tuple[str, bytes]]


class Ask(msgspec.Struct, array_like=True, tag="ask"):
    """Call a method of Queries."""

    number: int
    query: str
    arguments: list[Any]
    options: dict[str, Any]


class Told(msgspec.Struct, array_like=True, tag="told"):
    """The result of a query."""

    number: int
    result: Any


class Refused(msgspec.Struct, array_like=True, tag="refused"):
    """The refusal of a query."""

    number: int
    code: str
    message: str
    details: dict[str, Any]
    retry_after: float | None


class State(msgspec.Struct, array_like=True, tag="state"):
    """At the start, after each batch, and now and then. Entries up to `settled` are written or
    given up; `lost` were given up; `troubles` says why nothing is written right now."""

    settled: int
    lost: int
    troubles: list[str]


class Alarm(msgspec.Struct, array_like=True, tag="alarm"):
    reason: str


class Recovered(msgspec.Struct, array_like=True, tag="recovered"):
    """All is written again; `lost` events were not."""

    lost: int


FromService = Record | Ask
FromRegistry = Told | Refused | State | Alarm | Recovered

_decode_from_service = msgspec.msgpack.Decoder(FromService).decode
_decode_from_registry = msgspec.msgpack.Decoder(FromRegistry).decode


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    raise NotImplementedError(f"{type(value)} is not sent")


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode


def framed(message: FromService | FromRegistry) -> bytes:
    try:
        body = _encode(message)
    except UnicodeEncodeError:  # a path may be any bytes
        body = _encode(
            escaped(msgspec.to_builtins(message, enc_hook=_plain, builtin_types=[bytes]))
        )
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Puts frames together again."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, at)
            end = at + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[at + _LENGTH.size : end])
            at = end
        del self._buffer[:at]


def from_service(frame: bytes) -> FromService:
    return _decode_from_service(frame)


def from_registry(frame: bytes) -> FromRegistry:
    return _decode_from_registry(frame)


def record(entry: Entry) -> Record:
    maps = [(seal, map.tobytes()) for seal, map in entry.maps]
    return Record(
        entry.number, entry.time, entry.kind, entry.seal, entry.data, list(entry.seals), maps
    )


def entry(record: Record) -> Entry:
    data = record.data
    for name, kind in _TYPED.items():
        if name in data and isinstance(data[name], dict):
            data[name] = msgspec.convert(data[name], kind)
    maps = tuple((seal, map_of(rows)) for seal, rows in record.maps)
    return Entry(
        record.time, record.kind, record.seal, data, tuple(record.seals), maps, record.number
    )


def map_of(rows: bytes) -> ExtentMap:
    return np.frombuffer(rows, dtype=np.uint64).reshape(-1, 4)


def refused(number: int, refusal: Refusal) -> Refused:
    details = msgspec.to_builtins(refusal.details)
    return Refused(number, refusal.code, refusal.message, details, refusal.retry_after)


def refusal(refused: Refused) -> Refusal:
    return Refusal(refused.code, refused.message, refused.details, retry_after=refused.retry_after)
