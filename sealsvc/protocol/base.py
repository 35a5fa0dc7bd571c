"""What every message of the control protocol is made of: limits, checked types, the request."""

# Annotations are evaluated here: a struct without fields of its own has these looked up in its own
# module, which need not know their names.

from typing import Annotated

import msgspec
from msgspec import Meta

VERSION = 1
MAX_MESSAGE = 64 * 1024
MAX_FDS = 2
MAX_ANSWER_FDS = 4
DEFAULT_SOCKET = "/run/sealsvc/control.sock"

Offset = Annotated[int, Meta(ge=0, le=2**62)]
Length = Annotated[int, Meta(ge=1, le=2**62)]
SealId = Annotated[str, Meta(pattern="^[0-9a-f]{24}$")]
Seconds = Annotated[float, Meta(ge=0, le=86400 * 365)]
RequestId = Annotated[int, Meta(ge=0, le=2**53)]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
# traceparent of W3C Trace Context, of the only version there is.
Trace = Annotated[str, Meta(pattern="^(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?$")]
Pid = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Uid = Annotated[int, Meta(ge=0, le=2**32 - 1)]
RingNumber = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Limit = Annotated[int, Meta(ge=1, le=1000)]


class Request(
    msgspec.Struct,
    frozen=True,
    forbid_unknown_fields=True,
    kw_only=True,
    tag_field="op",
    omit_defaults=True,
):
    """`principal` is whom the asker asks for, where it is a front for others (the REST API): it is
    recorded, and gives no right. `trace` is recorded, too, with what the request changes.

    What is at its default is not written: an older version, which refuses fields that it does not
    know, understands every request that uses no newer one (docs/upgrade.md)."""

    id: RequestId
    v: int = VERSION
    principal: Annotated[str, Meta(max_length=128)] = ""
    trace: Trace = ""


class Keyed(Request, frozen=True, kw_only=True):
    """A request that changes something. One that is sent again with the same `key` (by the same
    user, within the time that service.idempotency names) is not carried out again: it is answered
    as the first was."""

    key: Annotated[str, Meta(max_length=64)] = ""
