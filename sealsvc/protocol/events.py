"""Messages about events: what happened, as it happens and as it is kept."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from sealsvc.protocol.base import (
    VERSION,
    Limit,
    Request,
)


class Watch(Request, frozen=True, tag="watch"):
    """Push events to this connection from now on, after replaying what the service still keeps of
    those after `since` (an Event.seq). Answer: Watching."""

    since: int | None = None


class PastEvents(Request, frozen=True, tag="past-events"):
    """The events after number `since` that the service still keeps, the oldest first, as many as
    fit into a message. Answer: EventPage."""

    since: Annotated[int, Meta(ge=0, le=2**53)]
    limit: Limit = 1000


class Watching(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="watching"):
    """`seq` is that of the newest event; `gap` is true when some after `since` are gone. `run`
    names this run of the service: numbers of another run mean nothing in it."""

    seq: int
    gap: bool
    run: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="reply", tag="event"):
    """Something that happened. `seq` counts from 1 in each run of the service; `time` is seconds
    of the Unix epoch. `name` is one of EVENTS; `data` depends on it; `path` is that of the seal's
    file."""

    seq: int
    time: float
    name: str
    seal: str | None = None
    path: str | None = None
    data: dict[str, Any] = {}
    v: int = VERSION


class EventPage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="event-page"):
    """`seq` is that of the newest event there is; ask again with `since` = the last one's until it
    is reached. `gap` is true when events after `since` are no longer kept. `run` as in Watching."""

    events: list[Event]
    seq: int
    gap: bool
    run: str


EVENTS = {
    "granted": "a seal was granted (data: the SealInfo)",
    "refused": "a grant was refused (data: code, message, details, path)",
    "state": "a step in a seal's life (data: from, to, step, reason, seqid)",
    "conflict": "an operation met a seal (data: operation, seals, verdict; repeated: so many"
    " more of the same process were refused since)",
    "recall": "a seal was asked for (data: reason, grace, wanted, operation, merged: one was under"
    " way already)",
    "renewed": "a holder renewed its seal (data: ttl)",
    "conflict-ended": "a waiting operation went on or was refused (data: operation, result,"
    " waited seconds)",
    "reclaimed": "the service was restarted and took its seals over (data: seals)",
    "recorded": "the registry can be written again (data: lost: events that were not recorded)",
    "job": "a job began, went on or ended (data: the JobInfo, without its result)",
    "policy": "the policy was read again (data: changed)",
    "drift": "a sealed extent map changed: a broken promise (data: the Drift)",
    "alarm": "an operator should look (data: reason)",
    "ring": "a ring was used natively (data: ring, and how many grants, returns and recalls since)",
    "integrity": "data under a seal, or its tags, are not as they should be (data: the PiError)",
    "gap": "events were dropped because this watcher reads too slowly (data: dropped)",
}
