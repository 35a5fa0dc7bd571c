"""Messages of the device path: protection information (PI) to a sealed file's blocks."""

# Annotations are evaluated where the union of all messages is built: no __future__ import.

from typing import Annotated

import msgspec
from msgspec import Meta

from sealsvc.protocol.base import Name, Request, SealId


class PiPath(Request, frozen=True, tag="pi-path"):
    """What the device path can do for a file: the file of `seal`, or the one whose descriptor is
    sent with the request. Answer: PiPathInfo."""

    seal: SealId | None = None


class PiChannel(Request, frozen=True, tag="pi-channel"):
    """Open a PI channel to the blocks of an exclusive seal, which the caller's own process holds.
    `bytes` is the size of the memory that is shared for data and PI. With `profile`, a channel is
    opened only when the device keeps that one. With `ring`, of a registration, requests are
    commands of its ring, and the socket is only to be shut down. Answer: PiChannelInfo, with two
    descriptors beside it: the channel's socket and its memory (docs/integrity-device.md)."""

    seal: SealId
    bytes: Annotated[int, Meta(ge=8192, le=2**24)] = 2**20
    profile: Name | None = None
    ring: bool = False


class PiPathInfo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pi-path"):
    """`available` is false, with the `reason`, where PI cannot be handed to the device. Sizes in
    bytes; a tuple of `metadata` bytes belongs to each `interval` of data. `device` is its name
    below /sys/block. `checkers` are those who can check: of client, service, device."""

    device: str
    available: bool
    reason: str = ""
    profile: str = ""
    interval: int = 0
    metadata: int = 0
    pi_offset: int = 0
    pi_size: int = 0
    guard: str = ""
    app_size: int = 0
    ref_size: int = 0
    block: int = 0
    checkers: list[str] = []


class PiChannelInfo(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="pi-channel"):
    """`offset` and `length` are the range that can be read and, where `writable`, written."""

    seal: str
    device: PiPathInfo
    bytes: int
    offset: int
    length: int
    writable: bool


class PiFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A request that a channel answered with an error. `field` is "tag", "checksum" or "reftag" of
    one interval, with the value `expected` and the one `found`; "" where it is not known. `located`
    is false where it is not known either which interval of the request it was: then `offset` and
    `length` (bytes of the file) are those of the request. `sector` is the block device's, in units
    of 512 bytes (null: not known). `checker` is client, service or device; `errno` that of the
    answer; `cookie` the application's name for the request."""

    operation: str
    cookie: int
    errno: int
    checker: str
    field: str
    located: bool
    offset: int
    length: int
    sector: int | None
    expected: int | None
    found: int | None


AnyRequest = PiPath | PiChannel
Result = PiPathInfo | PiChannelInfo
