"""One Watch on the shared connection, fanned out to any number of listeners.

The service numbers its events from 1 in each run. A hole in what a listener has seen is always
told by an event named `gap`, whose `seq` is the last number before what follows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from weakref import WeakSet

from api.connection import PROMPT, expect
from sealsvc.client import AsyncClient
from sealsvc.errors import Refusal
from sealsvc.messages import Event, ServiceStatus, Status, Watch, Watching

log = logging.getLogger("sealsvc.api")

# Pushes a client keeps unread: above what a service keeps for replay, since those come at once.
BACKLOG = 65536
REPLAY_TIMEOUT = 5.0
REPLAYS_AT_ONCE = 4

Arrivals = asyncio.Queue[Event | None]


class Listener:
    """A bounded queue of events that ends (None) when its reader falls behind."""

    def __init__(self, limit: int) -> None:
        self._queue: Arrivals = asyncio.Queue(limit)
        self.dropped = False

    def offer(self, event: Event) -> bool:
        if self.dropped:
            return False
        if self._queue.full():
            self.dropped = True
            # Make room for the end mark; the reader resumes from its last id and loses nothing.
            self._queue.get_nowait()
            self._queue.put_nowait(None)
            return False
        self._queue.put_nowait(event)
        return True

    async def events(self) -> AsyncIterator[Event]:
        while (event := await self._queue.get()) is not None:
            yield event


def gap(after: int, reason: str) -> Event:
    return Event(seq=after, time=time.time(), name="gap", data={"dropped": None, "reason": reason})


@asynccontextmanager
async def arrivals(client: AsyncClient) -> AsyncIterator[Arrivals]:
    """The events pushed to `client` from this moment on (None: the connection has ended)."""
    queue: Arrivals = asyncio.Queue()
    task = asyncio.create_task(_pump(client, queue))
    # pushes() listens only once it is first read from; events sent with the answer to Watch would
    # be lost if the request went out before that.
    await asyncio.sleep(0)
    try:
        yield queue
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _pump(client: AsyncClient, queue: Arrivals) -> None:
    async for push in client.pushes(BACKLOG):
        if isinstance(push, Event):
            queue.put_nowait(push)
    queue.put_nowait(None)


async def _watch(client: AsyncClient, since: int | None) -> Watching:
    return expect(await client.call(Watch, timeout=PROMPT, since=since), Watching)


class Feed:
    def __init__(self, path: str, queue: int, clients: int) -> None:
        self._path = path
        self._queue = queue
        self._clients = clients
        # Weak: a listener whose response never started has nobody to take it out.
        self._listeners: WeakSet[Listener] = WeakSet()
        self._replays = asyncio.Semaphore(REPLAYS_AT_ONCE)
        self._refused: Refusal | None = None
        self._lost_at = 0.0
        self.position: int | None = None

    def listen(self) -> Listener:
        if self._refused is not None:
            raise self._refused
        if len(self._listeners) >= self._clients:
            message = f"{self._clients} clients already follow the events"
            raise Refusal("limit-reached", message, {"limit": self._clients}, retry_after=5.0)
        listener = Listener(self._queue)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    async def follow(self, client: AsyncClient) -> None:
        """The session of the shared connection: watch until it ends."""
        async with arrivals(client) as queue:
            await self._begin(client)
            try:
                while (event := await queue.get()) is not None:
                    self._publish(event)
            finally:
                self._lost_at = time.monotonic()

    async def _begin(self, client: AsyncClient) -> None:
        self._refused = None
        try:
            restarted = await self._restarted(client)
            since = 0 if restarted else self.position
            watching = await _watch(client, since)
        except Refusal as refusal:
            if refusal.code == "service-unavailable":
                raise
            # Policy may deny events and allow the rest: the connection still serves requests.
            log.warning("the service refuses to send events: %s", refusal)
            self._refused = refusal
            return
        if restarted:
            self._publish(gap(0, "the service was restarted; numbers begin again"))
        elif since is not None and watching.gap:
            self._publish(gap(since, "the service no longer keeps these events"))
        self.position = watching.seq if since is None else since

    async def _restarted(self, client: AsyncClient) -> bool:
        """Whether this is another run than the one `position` counts in. Only its start can tell:
        in a container every run has the same pid."""
        status = expect(await client.call(Status, timeout=PROMPT), ServiceStatus)
        return self.position is not None and time.monotonic() - status.uptime > self._lost_at

    def _publish(self, event: Event) -> None:
        self.position = event.seq
        for listener in tuple(self._listeners):
            if not listener.offer(event):
                self._listeners.discard(listener)

    async def replay(self, since: int) -> list[Event]:
        """What the service still keeps of the events after `since`, on a connection of its own:
        on the shared one, every other listener would see them again."""
        async with self._replays, AsyncClient(self._path) as client, arrivals(client) as queue:
            watching = await _watch(client, since)
            if since <= watching.seq:
                lost = [gap(since, "the service no longer keeps these events")]
                kept = await _until(queue, watching.seq, since)
                return lost + kept if watching.gap else kept
        return [gap(0, "that id is of an earlier run of the service"), *await self.replay(0)]


async def _until(queue: Arrivals, last: int, since: int) -> list[Event]:
    events: list[Event] = []
    # The protocol does not promise that the newest event is among those kept.
    with suppress(TimeoutError):
        async with asyncio.timeout(REPLAY_TIMEOUT):
            while since < last and (event := await queue.get()) is not None:
                events.append(event)
                since = event.seq
    return [event for event in events if event.seq <= last or event.name == "gap"]
