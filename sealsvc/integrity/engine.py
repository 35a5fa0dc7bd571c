"""The native engine (native/integrity), typed: the only importer of its cffi module.

Data is a buffer, or several (as an iovec); nothing is copied, and the GIL is released. Failures are
OSErrors with an errno of native/integrity/pi.h.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from _sealsvc_integrity import ffi, lib

from sealsvc.integrity.profiles import CHECKSUMS, REFTAGS, Meaning, Profile

Tags = npt.NDArray[np.uint8]  # (blocks, profile.width)
Buffers = Any  # what has the buffer protocol, or a list of such


@dataclass(frozen=True, slots=True)
class Values:
    """What the fields of a call have: `block` is the number of its first block, `reftag` that of
    the first (sequence) or of all (constant)."""

    block: int = 0
    reftag: int = 0
    tag: int = 0
    storage: int = 0
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class TagError:
    """One field of one block; `block` 0 is the first of the call. Values as they stand in a tag;
    `expected` is empty where it cannot be known (a signature)."""

    block: int
    field: str
    expected: bytes
    found: bytes


def _native_profile(profile: Profile) -> Any:
    row = ffi.new("struct seal_pi_profile *")
    row.name = profile.name.encode()
    row.granularity, row.alignment, row.width = (
        profile.granularity,
        profile.alignment,
        profile.width,
    )
    row.checksum = CHECKSUMS[profile.checksum].number if profile.checksum else 0
    row.reftag = REFTAGS[profile.reftag].number if profile.reftag else 0
    row.escape, row.fields = profile.escape, len(profile.fields)
    for place, field in zip(row.field, profile.fields, strict=False):
        place.meaning, place.offset = field.meaning, field.offset
        place.width, place.order = field.width, field.order
    return row


class _Call:
    """The arguments of one call, and what keeps them alive."""

    def __init__(self, profile: Profile, data: Buffers, values: Values, fields: int) -> None:
        pieces: Sequence[Any] = data if isinstance(data, list | tuple) else [data]
        self.count = len(pieces)
        self._pieces = [ffi.from_buffer(piece) for piece in pieces]
        self.iovecs = ffi.new("struct iovec[]", [(piece, len(piece)) for piece in self._pieces])
        self._profile = _native_profile(profile)
        self._key = ffi.from_buffer(values.key)
        self.request = ffi.new(
            "struct seal_pi_request *",
            {
                "profile": self._profile,
                "fields": fields,
                "key": self._key,
                "key_length": len(values.key),
                "block": values.block,
                "reftag": values.reftag,
                "tag": values.tag,
                "storage": values.storage,
            },
        )
        self.bytes = sum(len(piece) for piece in self._pieces)


def blocks_of(profile: Profile, length: int) -> int:
    """Tags for `length` bytes of data."""
    return length // profile.granularity if profile.granularity else 1


def _done(result: int, call: str) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), call)
    return result


def generate(
    profile: Profile,
    data: Buffers,
    values: Values = Values(),
    *,
    fields: int | None = None,
    tags: Tags | None = None,
) -> Tags:
    """Fills in the fields of the mask `fields` (None: all), and returns the tags. Those that are
    not in the mask stay as they are in `tags`, if given, where the result is written."""
    call = _Call(profile, data, values, profile.mask if fields is None else fields)
    if tags is None:
        tags = np.zeros((blocks_of(profile, call.bytes), profile.width), np.uint8)
    room = ffi.from_buffer(tags, require_writable=True)
    _done(
        lib.seal_pi_generate(call.request, call.iovecs, call.count, room, len(room)),
        "seal_pi_generate",
    )
    return tags


def verify(
    profile: Profile,
    data: Buffers,
    tags: Tags,
    values: Values = Values(),
    *,
    fields: int | None = None,
    most: int = 64,
) -> tuple[int, list[TagError]]:
    """How many fields differ, and the first `most` of them. `fields` is a mask (None: all)."""
    call = _Call(profile, data, values, profile.mask if fields is None else fields)
    errors = ffi.new("struct seal_pi_error[]", most)
    given = ffi.from_buffer(tags)
    count = _done(
        lib.seal_pi_verify(call.request, call.iovecs, call.count, given, len(given), errors, most),
        "seal_pi_verify",
    )
    names = {field.meaning: field.name for field in profile.fields}
    return count, [
        TagError(
            int(row.block),
            names[Meaning(row.meaning)],
            bytes(row.expected[0 : row.expected_length]),
            bytes(row.found[0 : row.found_length]),
        )
        for row in errors[0 : min(count, most)]
    ]


def check(profile: Profile) -> str:
    """Why the engine cannot carry this profile out; "" when it can."""
    why = ffi.new("const char **")
    if lib.seal_pi_check(_native_profile(profile), why) == 0:
        return ""
    return bytes(ffi.string(why[0])).decode()


def public_key(private_key: bytes) -> bytes:
    """The public half of an Ed25519 key, 32 bytes each."""
    room = bytearray(32)
    _done(
        lib.seal_pi_public_key(private_key, ffi.from_buffer(room, require_writable=True)),
        "seal_pi_public_key",
    )
    return bytes(room)


def variants() -> dict[str, str]:
    """Which code computes each checksum on this machine."""
    return {
        name: bytes(ffi.string(lib.seal_pi_variant(algorithm.number))).decode()
        for name, algorithm in CHECKSUMS.items()
    }
