"""The client of the control socket that lives in an event loop; it raises what `Client` raises."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from sealsvc.client.methods import AsyncMethods
from sealsvc.core.errors import Refusal
from sealsvc.protocol.events import Event
from sealsvc.protocol.messages import (
    Answer,
    AnyRequest,
    Failure,
    Push,
)
from sealsvc.protocol.seals import Grant, Recall, Return

if TYPE_CHECKING:
    from sealsvc.client.held import AsyncHeld

from sealsvc.client.datagrams import (
    Reply,
    Undelivered,
    expected,
    new_socket,
    open_to_seal,
    out_of_descriptors,
    raised,
    receive,
    refuse_child,
    send,
    socket_path,
    unavailable,
)

T = TypeVar("T")

_UNHEARD = 1024  # events that are kept while nobody reads


class AsyncClient(AsyncMethods):
    """A connection owned by one event loop; many requests may be in flight.

    `async with AsyncClient() as client: reply = await client.call(Show, seal=...)`.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path or socket_path()
        self._ids = itertools.count(1)
        self._sock: socket.socket | None = None
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._watchers: set[asyncio.Queue[Push | None]] = set()
        self._unheard: list[Push] = []  # what came while nobody read
        self._owner = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection to the service."""
        return self._sock is not None

    async def connect(self) -> None:
        """Connect to the service. Raises Refusal `service-unavailable` when none answers at the
        path, `out-of-descriptors`."""
        sock = new_socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self.path)
        except OSError as error:
            sock.close()
            raise unavailable(self.path, error) from None
        self._sock, self._loop = sock, asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    async def close(self) -> None:
        """Close the connection. Requests in flight raise Refusal `service-unavailable`."""
        self._lost("the client closed the connection")

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def call(
        self,
        kind: type[AnyRequest],
        /,
        fds: Sequence[int] = (),
        timeout: float | None = 60.0,
        **fields: Any,
    ) -> Reply:
        """Send a request of type `kind` with these fields, and the descriptors `fds`, which stay
        the caller's; return its answer. Raises the Refusal that the service answers with,
        `service-unavailable` without a connection, TimeoutError after `timeout` seconds (the
        service may still carry the request out), RuntimeError in a child of fork(2) or in another
        event loop."""
        refuse_child(self._owner)
        if self._sock is None:
            raise Refusal("service-unavailable", f"not connected to {self.path}")
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this client is another event loop's: one client for each loop")
        request = kind(id=next(self._ids), **fields)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        try:
            # A request is far smaller than the socket's buffer, and the service reads promptly;
            # when it does not, that is the answer.
            send(self._sock, request, fds)
            async with asyncio.timeout(timeout):
                return await future
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise unavailable(self.path, error) from None
        finally:
            self._waiting.pop(request.id, None)

    async def _ask(self, kind: type[AnyRequest], answer: type[T], /, **fields: Any) -> T:
        said = {name: value for name, value in fields.items() if value is not None}
        return expected(await self.call(kind, **said), answer)

    async def hold(
        self,
        path: str | os.PathLike[str],
        on_recall: Callable[[Recall], Awaitable[None] | None] | None = None,
        **terms: Any,
    ) -> AsyncHeld:
        """As Client.hold, for `async with await client.hold(path) as held`; `on_recall` is called
        in the event loop, and may be a coroutine function."""
        from sealsvc.client.held import AsyncHeld

        opened = open_to_seal(path, terms)
        own = AsyncClient(self.path)
        try:
            await own.connect()
            seal = (await own.call(Grant, [opened], **terms)).seal
        except BaseException:
            await own.close()
            os.close(opened)
            raise
        return AsyncHeld(own, opened, seal, on_recall)

    def pushes(self, limit: int = 1024) -> AsyncIterator[Push]:
        """Recalls and events since the connection was made, or since somebody else began to read
        them, until the connection ends. Nothing that comes after this call is missed, whenever it
        is iterated first. A reader that falls `limit` messages behind is ended, so that it can
        start afresh with Watch.since."""
        unheard, self._unheard = self._unheard, []
        queue: asyncio.Queue[Push | None] = asyncio.Queue(max(limit, len(unheard) + 1))
        for push in unheard:
            queue.put_nowait(push)
        if self._sock is None:
            queue.put_nowait(None)
        self._watchers.add(queue)
        return self._read(queue)

    async def _read(self, queue: asyncio.Queue[Push | None]) -> AsyncIterator[Push]:
        try:
            while (push := await queue.get()) is not None:
                yield push
        finally:
            self._watchers.discard(queue)

    def _readable(self) -> None:
        assert self._sock is not None
        try:
            received = receive(self._sock)
        except (BlockingIOError, InterruptedError):
            return
        except Undelivered as undelivered:
            self._undelivered(undelivered)
            return
        except (OSError, Refusal, msgspec.DecodeError) as error:
            self._lost(str(error))
            return
        if received is None:
            self._lost("the service closed the connection")
            return
        message, fds = received
        if isinstance(message, Push):
            self._push(message)
        elif isinstance(message, Failure) and message.id is None:
            self._lost(str(raised(message)))
        else:
            self._answer(message, fds)

    def _undelivered(self, undelivered: Undelivered) -> None:
        """A seal that nobody can use is given back; its answer comes to nobody."""
        returned = ""
        if (seal := undelivered.seal) and self._sock is not None:
            with suppress(OSError):
                send(self._sock, Return(id=next(self._ids), seal=seal), ())
                returned = f"; seal {seal} is returned"
        number = getattr(undelivered.message, "id", None)
        future = self._waiting.get(number) if number is not None else None
        if future is not None and not future.done():
            future.set_exception(out_of_descriptors(returned))

    def _answer(self, message: Answer | Failure, fds: tuple[int, ...]) -> None:
        future = self._waiting.get(message.id) if message.id is not None else None
        if future is None or future.done():
            for fd in fds:
                os.close(fd)
        elif isinstance(message, Failure):
            future.set_exception(raised(message))
        else:
            future.set_result(Reply(message.result, fds))

    def _keep(self, push: Push) -> None:
        """For whoever reads first. A recall is never dropped; of events the newest are kept."""
        self._unheard.append(push)
        if len(self._unheard) > _UNHEARD:
            oldest = next((p for p in self._unheard if isinstance(p, Event)), None)
            if oldest is not None:
                self._unheard.remove(oldest)

    def _push(self, push: Push) -> None:
        if not self._watchers:
            self._keep(push)
        for queue in tuple(self._watchers):
            if queue.full():
                self._watchers.discard(queue)
                queue.get_nowait()
                queue.put_nowait(None)
            else:
                queue.put_nowait(push)

    def _lost(self, why: str) -> None:
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._sock = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Refusal("service-unavailable", why))
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)
