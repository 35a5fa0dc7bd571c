"""One Watch on the shared connection, fanned out to any number of listeners.

The service numbers its events from 1 in each run, and names the run. A hole in what a listener has
seen is always told by an event named `gap`, whose `seq` is the last number before what follows.
Each event is encoded once, whoever listens; a listener takes all that has come in one go.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from weakref import WeakSet

from api.access import Caller
from api.connection import PROMPT, expect
from sealsvc.client import AsyncClient
from sealsvc.errors import Refusal
from sealsvc.messages import Event, ServiceStatus, Status, Watch, Watching, encode

log = logging.getLogger("sealsvc.api")

# Pushes a client keeps unread: above what a service keeps for replay, since those come at once.
BACKLOG = 65536
REPLAY_TIMEOUT = 5.0
REPLAYS_AT_ONCE = 4

Arrivals = asyncio.Queue[Event | None]


@dataclass(frozen=True, slots=True)
class Packet:
    """An event, encoded. `mark` is its id: the run's name and the number."""

    event: Event
    mark: str
    data: bytes

    @property
    def sse(self) -> bytes:
        head = f"id: {self.mark}\nevent: {self.event.name}\ndata: ".encode()
        return head + self.data + b"\n\n"


def packet(event: Event, run: str) -> Packet:
    return Packet(event, mark(event.seq, run), encode(event))


def mark(seq: int, run: str) -> str:
    return f"{run}.{seq}" if run else str(seq)


def visible(event: Event, caller: Caller) -> bool:
    """Whoever is confined to directories sees what befalls files there, and nothing else."""
    return caller.below is None or event.name == "gap" or caller.sees(event.path)


class Listener:
    """A bounded queue that ends when its reader falls behind."""

    def __init__(self, caller: Caller, count: int, size: int) -> None:
        self.caller = caller
        self._count, self._size, self._held = count, size, 0
        self._queue: deque[Packet] = deque()
        self._arrived = asyncio.Event()
        self.dropped = False

    def offer(self, packet: Packet) -> bool:
        if self.dropped:
            return False
        if not visible(packet.event, self.caller):
            return True
        self._held += len(packet.data)
        if len(self._queue) >= self._count or self._held > self._size:
            # The reader resumes from its last id and loses nothing.
            self.dropped = True
            self._queue.clear()
        else:
            self._queue.append(packet)
        self._arrived.set()
        return not self.dropped

    async def batches(self) -> AsyncIterator[list[Packet]]:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            taken = list(self._queue)
            self._queue.clear()
            self._held = 0
            if taken:
                yield taken
            if self.dropped:
                return


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
    def __init__(self, path: str, queue: int, size: int, clients: int) -> None:
        self._path = path
        self._queue, self._size, self._clients = queue, size, clients
        # Weak: a listener whose response never started has nobody to take it out.
        self._listeners: WeakSet[Listener] = WeakSet()
        self._replays = asyncio.Semaphore(REPLAYS_AT_ONCE)
        self._refused: Refusal | None = None
        self._lost_at = 0.0
        self.position: int | None = None
        self.run = ""
        self.drops = 0

    def __len__(self) -> int:
        return len(self._listeners)

    def listen(self, caller: Caller) -> Listener:
        if self._refused is not None:
            raise self._refused
        if len(self._listeners) >= self._clients:
            message = f"{self._clients} clients follow the events already (--max-listeners)"
            raise Refusal("limit-reached", message, {"limit": self._clients}, retry_after=5.0)
        listener = Listener(caller, self._queue, self._size)
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
            status = expect(await client.call(Status, timeout=PROMPT), ServiceStatus)
            restarted = self._restarted(status)
            since = 0 if restarted else self.position
            watching = await _watch(client, since)
        except Refusal as refusal:
            if refusal.code == "service-unavailable":
                raise
            # Policy may deny events and allow the rest: the connection still serves requests.
            log.warning("the service refuses to send events: %s", refusal)
            self._refused = refusal
            return
        self.run = status.run
        if restarted:
            self._publish(gap(0, "the service was restarted; numbers begin again"))
        elif since is not None and watching.gap:
            self._publish(gap(since, "the service no longer keeps these events"))
        self.position = watching.seq if since is None else since

    def _restarted(self, status: ServiceStatus) -> bool:
        """Whether this is another run than the one `position` counts in."""
        if self.position is None:
            return False
        if status.run or self.run:
            return status.run != self.run
        # A service that does not name its runs: in a container each has the same pid, so that
        # only its start can tell.
        return time.monotonic() - status.uptime > self._lost_at

    def _publish(self, event: Event) -> None:
        self.position = event.seq
        told = packet(event, self.run)
        for listener in tuple(self._listeners):
            if not listener.offer(told):
                self._listeners.discard(listener)
                self.drops += 1

    async def replay(self, since: int, caller: Caller, run: str | None = None) -> list[Packet]:
        """What the service still keeps of the events after `since`, on a connection of its own:
        on the shared one, every other listener would see them again."""
        async with self._replays, AsyncClient(self._path) as client, arrivals(client) as queue:
            watching = await _watch(client, since)
            if since <= watching.seq and run in (None, watching.run):
                lost = [gap(since, "the service no longer keeps these events")]
                kept = await _until(queue, watching.seq, since)
                found = lost + kept if watching.gap else kept
                return [packet(e, watching.run) for e in found if visible(e, caller)]
            earlier = packet(gap(0, "that id is of another run of the service"), watching.run)
        return [earlier, *await self.replay(0, caller)]


async def _until(queue: Arrivals, last: int, since: int) -> list[Event]:
    events: list[Event] = []
    # The protocol does not promise that the newest event is among those kept.
    with suppress(TimeoutError):
        async with asyncio.timeout(REPLAY_TIMEOUT):
            while since < last and (event := await queue.get()) is not None:
                events.append(event)
                since = event.seq
    return [event for event in events if event.seq <= last or event.name == "gap"]
