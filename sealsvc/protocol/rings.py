"""Messages of clients with a ring: attaching, and registering files."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from sealsvc.protocol.base import (
    Request,
    RingNumber,
)
from sealsvc.protocol.seals import (
    Grant,
    SealInfo,
)


class Register(Grant, frozen=True, kw_only=True, tag="register"):
    """Register a file, or a range of it, with the ring `ring` of this connection: the whole order
    of a grant is gone through once, after which seals inside the range are granted by the ring.
    Fields as of Grant, for the registration and for its seals alike; the caller itself is the
    holder, and `key` must be empty. Answer: Registered, with the descriptor beside it as for a
    Grant. It ends like a seal: by Return, by a recall that is obeyed, or with its holder."""

    ring: RingNumber


class Attach(Request, frozen=True, tag="attach"):
    """Make a ring of this connection's own (docs/ring.md), with a seal table of so many `slots`
    (they count against the limits of policy), or, with `ring` and `secret`, attach to the one that
    is there: after the service, or the client, was started again. `commands` and `data` are bytes
    (of data none, or at least 4096), `events` is a number; none need be a power of two. Answer:
    Attached, with four descriptors beside it: memory, table, kick, bell."""

    slots: Annotated[int, Meta(ge=1, le=2**24)] = 1024
    commands: Annotated[int, Meta(ge=192, le=2**26, multiple_of=16)] = 16384
    events: Annotated[int, Meta(ge=2, le=2**16)] = 256
    data: Annotated[int, Meta(ge=0, le=2**26)] = 65536
    ring: RingNumber | None = None
    secret: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")] | None = None


class Registered(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="registered"):
    """`file` is the index by which commands name it; `seal` is the registration."""

    file: int
    seal: SealInfo


class Attached(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="attached"):
    """`files` are the registrations that live, by index, with their ids."""

    ring: int
    secret: str
    files: dict[int, str]
