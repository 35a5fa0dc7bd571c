"""/v1/events: the service's events as Server-Sent Events, or over a WebSocket. An event's id is the
name of the service's run and its number there."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response, WebSocket
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from sealsvc.core.errors import Refusal
from sealsvc_api import examples, inputs
from sealsvc_api.access import Action, Caller
from sealsvc_api.auth import Asking, admit, still
from sealsvc_api.connection import Connection, Daemon
from sealsvc_api.feed import Feed, Listener, Packet, mark, packet
from sealsvc_api.http_protocol import RESET
from sealsvc_api.operations import GUARDED, operation, taken
from sealsvc_api.schemas import EventsQuery
from sealsvc_api.settings import Settings

router = APIRouter(tags=["events"])
sockets = APIRouter()
log = logging.getLogger("sealsvc.api")

RETRY = 2000  # milliseconds a browser waits before it reconnects
# Seconds in which events gather: many at once cost a stream hardly more than one.
GATHER = 0.05
_MARK = re.compile(r"(?:([0-9a-f]{8})\.)?([0-9]{1,15})", re.ASCII)


def _documented() -> dict[str, Any]:
    resume = taken("Last-Event-ID", "Resume after this id; goes before `since`", "5f3a91c2.16")
    described = operation(
        Action.EVENTS,
        examples.EVENT,
        codes=(*GUARDED, "limit-reached"),
        query=EventsQuery,
        accepts=(resume,),
    )
    schema = {"type": "string", "description": "Each `data` is one #/components/schemas/Event"}
    text = packet(examples.EVENT, "5f3a91c2").sse.decode()
    described["responses"][200]["content"] = {
        "text/event-stream": {"schema": schema, "example": text}
    }
    return described


def _since(header: str | None, query: str | None) -> tuple[int | None, str | None]:
    """The number to resume after, and the run that it is of (None: not said)."""
    text = header or query
    if not text:
        return None, None
    match = _MARK.fullmatch(text)
    if match is None:
        message = "Last-Event-ID: want the id of an event of this stream"
        raise Refusal("bad-request", message, {"field": "Last-Event-ID"})
    return int(match[2]), match[1]


async def _followed(
    feed: Feed, listener: Listener, last: int, past: AsyncIterator[list[Packet]], life: float
) -> AsyncIterator[list[Packet]]:
    """What is past, then what comes; until the listener is dropped, or its time is over."""
    deadline = time.monotonic() + life
    try:
        async for batch in past:
            if listener.dropped:
                return
            last = batch[-1].event.seq
            yield batch
        async for taken in listener.batches():
            fresh = []
            for item in taken:
                # What came while the past was read is in both; behind a gap numbers may begin anew.
                if item.event.seq > last or item.event.name == "gap":
                    last = item.event.seq
                    fresh.append(item)
            if fresh:
                yield fresh
            if time.monotonic() > deadline:
                return
            await asyncio.sleep(GATHER)
    finally:
        feed.leave(listener)


async def _begun(
    feed: Feed, daemon: Connection, caller: Caller, since: int | None, run: str | None
) -> tuple[int, AsyncIterator[list[Packet]]]:
    """The number that the stream goes on from, and what is past. The first page is read here, so
    that a refusal can still be answered as one."""
    if not daemon.connected or feed.position is None:
        raise daemon.down()
    if since is None:
        return feed.position, _nothing()
    past = feed.replay(daemon, since, caller, run)
    first = await anext(past, None)
    if first is None:
        return since, _nothing()
    begins_anew = first[0].event.name == "gap"
    return 0 if begins_anew else since, _rejoined(first, past)


async def _nothing() -> AsyncIterator[list[Packet]]:
    for batch in list[list[Packet]]():
        yield batch


async def _rejoined(
    first: list[Packet], rest: AsyncIterator[list[Packet]]
) -> AsyncIterator[list[Packet]]:
    yield first
    async for batch in rest:
        yield batch


async def _stream(
    batches: AsyncIterator[list[Packet]], opening: str
) -> AsyncIterator[ServerSentEvent | bytes]:
    # The id makes a browser that loses us before the first event resume from here.
    yield ServerSentEvent(comment="watching", id=opening, retry=RETRY, sep="\n")
    async for batch in batches:
        yield b"".join(p.sse for p in batch)
    yield ServerSentEvent(comment="ended: resume with Last-Event-ID", sep="\n")


class EventStream(EventSourceResponse):
    def __init__(
        self, listener: Listener, content: AsyncIterator[ServerSentEvent | bytes], **named: Any
    ) -> None:
        super().__init__(content, **named)
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A reader that takes nothing for `send_timeout` is cut off: its doing, not a defect."""
        with _cuttable(self._listener, scope):
            try:
                await super().__call__(scope, receive, send)
            except SendTimeoutError:
                log.info("an event stream was cut off: its reader takes nothing")


@contextmanager
def _cuttable(listener: Listener, scope: Scope) -> Iterator[None]:
    """While the stream is sent, its connection can be ended whatever its reader does. Afterwards
    the connection serves other requests."""
    listener.cut = scope["state"].get(RESET)
    try:
        yield
    finally:
        listener.cut = None


def _heartbeat() -> ServerSentEvent:
    return ServerSentEvent(comment="heartbeat", sep="\n")


@router.get(
    "/events",
    summary="Events as they happen",
    description="A `gap` event tells that events before it are lost to this stream. A reader that"
    " falls behind is disconnected and resumes with Last-Event-ID. The same over a WebSocket, each"
    " message one event: /v1/events/ws.",
    **_documented(),
)
async def events(
    request: Request,
    daemon: Daemon,
    caller: Asking,
    query: Annotated[EventsQuery, Depends(inputs.query(EventsQuery))],
    last_event_id: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    feed: Feed = request.app.state.feed
    settings: Settings = request.app.state.settings
    since, run = _since(last_event_id, query.since)
    # Listening starts before the past is read, so that nothing falls between the two.
    listener = feed.listen(caller, partial(still, request, caller))
    try:
        last, past = await _begun(feed, daemon, caller, since, run)
    except BaseException:
        feed.leave(listener)
        raise
    batches = _followed(feed, listener, last, past, settings.stream_life)
    return EventStream(
        listener,
        _stream(batches, mark(last, feed.run)),
        ping=settings.heartbeat,
        ping_message_factory=_heartbeat,
        send_timeout=settings.send_timeout,
        sep="\n",
    )


@sockets.websocket("/v1/events/ws")
async def events_ws(socket: WebSocket, since: str | None = None) -> None:
    """The same events, one a message. Refused before the upgrade with 403."""
    feed: Feed = socket.app.state.feed
    settings: Settings = socket.app.state.settings
    daemon: Connection = socket.app.state.connection
    try:
        caller = admit(socket, Action.EVENTS)
        number, run = _since(None, since)
        listener = feed.listen(caller, partial(still, socket, caller))
    except Refusal as refusal:
        log.info("a WebSocket was refused: %s", refusal)
        await socket.close()
        return
    try:
        last, past = await _begun(feed, daemon, caller, number, run)
        await socket.accept()
    except Refusal as refusal:
        log.info("a WebSocket was refused: %s", refusal)
        feed.leave(listener)
        await socket.close()
        return
    except BaseException:
        feed.leave(listener)
        raise
    batches = _followed(feed, listener, last, past, settings.stream_life)
    sender = asyncio.create_task(_send(socket, batches, settings.send_timeout))
    try:
        with _cuttable(listener, socket.scope):
            while True:  # nothing is expected; but only a reader hears that the other has gone
                await socket.receive()
    except (WebSocketDisconnect, RuntimeError):
        pass
    finally:
        feed.leave(listener)
        sender.cancel()


async def _send(socket: WebSocket, batches: AsyncIterator[list[Packet]], patience: float) -> None:
    try:
        async for batch in batches:
            for item in batch:
                async with asyncio.timeout(patience):
                    await socket.send_text(item.data.decode())
        await socket.close(1013)
    except (WebSocketDisconnect, TimeoutError, RuntimeError):
        log.info("a WebSocket was cut off: its reader takes nothing")
