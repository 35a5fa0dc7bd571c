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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakSet, finalize

from sealsvc.client import AsyncClient
from sealsvc.core.errors import Refusal
from sealsvc.protocol.events import Event, EventPage, PastEvents, Watch, Watching
from sealsvc.protocol.messages import Push, encode
from sealsvc.protocol.system import ServiceStatus, Status
from sealsvc_api.access import Caller
from sealsvc_api.background import running
from sealsvc_api.connection import PROMPT, Connection, expect
from sealsvc_api.shares import Shares

log = logging.getLogger("sealsvc.api")

# Pushes that are kept unread.
BACKLOG = 65536
PAGES_AT_ONCE = 4  # of past events, that the service is asked for
_END_OF_RIGHTS = "the listener's rights have changed"

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


def _cut(listener: Listener) -> None:
    if listener.cut is not None:
        listener.cut()


def _always() -> bool:
    return True


class Listener:
    """A bounded queue that ends when its reader falls behind, or may listen no more: `entitled`
    tells whether it still may. `cut` ends the connection of a reader that takes nothing (None: it
    is not being sent to)."""

    def __init__(
        self, caller: Caller, count: int, size: int, entitled: Callable[[], bool] = _always
    ) -> None:
        self.caller, self.entitled = caller, entitled
        self._count, self._size, self._held = count, size, 0
        self._queue: deque[Packet] = deque()
        self._arrived = asyncio.Event()
        self.dropped = False
        self.leave: Callable[[], object] = lambda: None
        self.cut: Callable[[], object] | None = None

    def offer(self, packet: Packet) -> bool:
        if self.dropped:
            return False
        if not visible(packet.event, self.caller):
            return True
        self._held += len(packet.data)
        if len(self._queue) >= self._count or self._held > self._size:
            self.end()  # the reader resumes from its last id and loses nothing
        else:
            self._queue.append(packet)
            self._arrived.set()
        return not self.dropped

    def end(self) -> None:
        self.dropped = True
        self._queue.clear()
        self._arrived.set()

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
    async with running(_pump(client.pushes(BACKLOG), queue), "pushes"):
        yield queue


async def _pump(pushes: AsyncIterator[Push], queue: Arrivals) -> None:
    async for push in pushes:
        if isinstance(push, Event):
            queue.put_nowait(push)
    queue.put_nowait(None)


async def _watch(client: AsyncClient, since: int | None) -> Watching:
    return expect(await client.call(Watch, timeout=PROMPT, since=since), Watching)


class Feed:
    def __init__(self, path: str, queue: int, size: int, shares: Shares) -> None:
        self._path = path
        self._queue, self._size, self._shares = queue, size, shares
        # Weak: a listener whose response never started has nobody to take it out.
        self._listeners: WeakSet[Listener] = WeakSet()
        self._pages = asyncio.Semaphore(PAGES_AT_ONCE)
        self._refused: Refusal | None = None
        self._lost_at = 0.0
        self.position: int | None = None
        self.run = ""
        self.drops = 0

    def __len__(self) -> int:
        return len(self._listeners)

    def listen(self, caller: Caller, entitled: Callable[[], bool] = _always) -> Listener:
        if self._refused is not None:
            raise self._refused
        self._shares.take(caller)
        listener = Listener(caller, self._queue, self._size, entitled)
        listener.leave = finalize(listener, self._shares.give_back, caller)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        listener.leave()

    @asynccontextmanager
    async def rechecked(self, interval: float) -> AsyncIterator[None]:
        """Inside this context, listeners that may listen no more are ended within `interval`
        seconds, and cut off in as many more where their readers take nothing."""

        async def recheck() -> None:
            while True:
                await asyncio.sleep(interval)
                for listener in tuple(self._listeners):
                    if not listener.entitled():
                        log.info("a listener was ended: %s", _END_OF_RIGHTS)
                        listener.end()
                        self.leave(listener)
                        asyncio.get_running_loop().call_later(interval, _cut, listener)

        async with running(recheck(), "rights of listeners"):
            yield

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

    async def replay(
        self, daemon: Connection, since: int, caller: Caller, run: str | None = None
    ) -> AsyncIterator[list[Packet]]:
        """What the service still keeps of the events after `since`, up to the newest of this
        moment, page by page. It begins with a gap when some are missing, or when `since` is of
        another run of the service than `run`."""
        page = await self._page(daemon, since)
        this, newest = page.run, page.seq
        if since > newest or run not in (None, this):
            yield [packet(gap(0, "that id is of another run of the service"), this)]
            since = 0
            page = await self._page(daemon, since)
        while page.run == this:
            lost = [gap(since, "the service no longer keeps these events")] if page.gap else []
            batch = [packet(e, this) for e in [*lost, *page.events] if visible(e, caller)]
            if batch:
                yield batch
            if not page.events or page.events[-1].seq >= newest:
                return
            since = page.events[-1].seq
            page = await self._page(daemon, since)

    async def _page(self, daemon: Connection, since: int) -> EventPage:
        async with self._pages:
            return expect(await daemon.call(PastEvents, since=since), EventPage)
