"""The control protocol, version 1: every message, once.

A message is one SOCK_SEQPACKET datagram of JSON (at most MAX_MESSAGE bytes, at most MAX_FDS
descriptors beside it, or MAX_ANSWER_FDS beside an answer). A client sends requests, tagged by
`op`, with an `id` of its choosing; the service answers each with an Answer or a Failure that
carries the same id, in any order, and pushes Recall and Event messages, which have no id. A union
member is told by its tag.
"""

from __future__ import annotations

from typing import Any

import msgspec

from sealsvc.protocol import admin, copies, exports, integrity, relocation
from sealsvc.protocol.base import (
    VERSION,
    Request,
    RequestId,
)
from sealsvc.protocol.events import Event, EventPage, PastEvents, Watch, Watching
from sealsvc.protocol.history import RegistryAnswer, RegistryRequest
from sealsvc.protocol.rings import Attach, Attached, Register, Registered
from sealsvc.protocol.seals import (
    Downgrade,
    ExtentPage,
    Extents,
    Forgotten,
    Grant,
    IssueClaim,
    List,
    Mapped,
    MappingReport,
    Recall,
    RecallAny,
    RecallProgress,
    RecallReport,
    RecallSeals,
    Reclaim,
    Renew,
    Return,
    SealInfo,
    SealPage,
    Show,
)
from sealsvc.protocol.system import (
    Audit,
    AuditReport,
    FilesystemList,
    Filesystems,
    ServiceStatus,
    Simulate,
    Simulated,
    Status,
)


class Cancel(Request, frozen=True, tag="cancel"):
    """Cancel the request `request` of this connection, if it is still in flight. Answer: Done."""

    request: RequestId


AnyRequest = (
    Grant
    | Register
    | Attach
    | Return
    | Downgrade
    | Renew
    | RecallProgress
    | Forgotten
    | Reclaim
    | Mapped
    | Show
    | List
    | Extents
    | RecallSeals
    | Watch
    | PastEvents
    | Audit
    | RegistryRequest
    | Filesystems
    | Status
    | Cancel
    | Simulate
    | IssueClaim
    | copies.AnyRequest
    | relocation.AnyRequest
    | exports.StopExport
    | admin.AnyRequest
    | integrity.AnyRequest
)


class Done(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="done"):
    """The answer to a request that has nothing else to tell."""


Result = (
    SealInfo
    | Registered
    | Attached
    | MappingReport
    | SealPage
    | ExtentPage
    | RecallReport
    | AuditReport
    | RegistryAnswer
    | FilesystemList
    | ServiceStatus
    | Watching
    | EventPage
    | Simulated
    | Done
    | copies.CopyTrustReport
    | exports.ExportStopped
    | admin.Result
    | integrity.Result
)


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="answer"):
    """The answer to the request `id`."""

    id: int
    result: Result
    v: int = VERSION


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="failure"):
    """`code` is a row of core/errors.py. `id` is null when the request's was unreadable."""

    id: int | None
    code: str
    message: str
    details: dict[str, Any] = {}
    retry_after: float | None = None
    v: int = VERSION


Push = Recall | RecallAny | Event
FromService = Answer | Failure | Recall | RecallAny | Event

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(AnyRequest).decode
decode_from_service = msgspec.json.Decoder(FromService).decode
