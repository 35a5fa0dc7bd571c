"""/v1/events: the service's events as Server-Sent Events; the id is the event's seq."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from api import examples, inputs
from api.connection import Daemon
from api.feed import Feed, Listener
from api.operations import GUARDED, operation, taken
from api.schemas import EventsQuery
from api.settings import Settings
from sealsvc.errors import Refusal
from sealsvc.messages import Event, encode

router = APIRouter(tags=["events"])
log = logging.getLogger("sealsvc.api")

RETRY = 2000  # milliseconds a browser waits before it reconnects


def _sse(event: Event) -> ServerSentEvent:
    return ServerSentEvent(encode(event).decode(), event=event.name, id=str(event.seq), sep="\n")


def _documented() -> dict[str, Any]:
    resume = taken("Last-Event-ID", "Resume after this id; goes before `since`", "16")
    described = operation(
        examples.EVENT,
        codes=(*GUARDED, "limit-reached"),
        query=EventsQuery,
        accepts=(resume,),
    )
    schema = {"type": "string", "description": "Each `data` is one #/components/schemas/Event"}
    text = _sse(examples.EVENT).encode().decode()
    described["responses"][200]["content"] = {
        "text/event-stream": {"schema": schema, "example": text}
    }
    return described


def _since(header: str | None, query: int | None) -> int | None:
    if header is None or header == "":
        return query
    if not (header.isascii() and header.isdigit() and len(header) <= 15):
        message = "Last-Event-ID: want the id of an event of this stream"
        raise Refusal("bad-request", message, {"field": "Last-Event-ID"})
    return int(header)


async def _stream(
    feed: Feed, listener: Listener, last: int, past: list[Event]
) -> AsyncIterator[ServerSentEvent]:
    try:
        # The id makes a browser that loses us before the first event resume from here.
        yield ServerSentEvent(comment="watching", id=str(last), retry=RETRY, sep="\n")
        for event in past:
            last = event.seq
            yield _sse(event)
        async for event in listener.events():
            # What came while the past was read is in both.
            if event.seq > last or event.name == "gap":
                last = event.seq
                yield _sse(event)
        yield ServerSentEvent(comment="dropped: too slow; resume with Last-Event-ID", sep="\n")
    finally:
        feed.leave(listener)


class EventStream(EventSourceResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A reader that takes nothing for `send_timeout` is cut off: its doing, not a defect."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("an event stream was cut off: its reader takes nothing")


def _heartbeat() -> ServerSentEvent:
    return ServerSentEvent(comment="heartbeat", sep="\n")


@router.get(
    "/events",
    summary="Events as they happen",
    description="A `gap` event tells that events before it are lost to this stream. A reader that"
    " falls behind is disconnected and resumes with Last-Event-ID.",
    **_documented(),
)
async def events(
    request: Request,
    daemon: Daemon,
    query: Annotated[EventsQuery, Depends(inputs.query(EventsQuery))],
    last_event_id: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    feed: Feed = request.app.state.feed
    settings: Settings = request.app.state.settings
    since = _since(last_event_id, query.since)
    # Listening starts before the past is read, so that nothing falls between the two.
    listener = feed.listen()
    try:
        if not daemon.connected or feed.position is None:
            raise daemon.down()
        last = feed.position if since is None else since
        past = [] if since is None else await feed.replay(since)
    except BaseException:
        feed.leave(listener)
        raise
    return EventStream(
        _stream(feed, listener, last, past),
        ping=settings.heartbeat,
        ping_message_factory=_heartbeat,
        send_timeout=settings.send_timeout,
        sep="\n",
    )
