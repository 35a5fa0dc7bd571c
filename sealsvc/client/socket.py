"""Python clients of the control socket: `Client` blocks, `AsyncClient` lives in an event loop.

Both raise `Refusal` for the service's answers of "no", and `service-unavailable` when it is not
there. Descriptors that come with an answer belong to the caller. A connection is its process's own:
in a child of fork(2) every call raises RuntimeError.
"""

from __future__ import annotations

import array
import asyncio
import errno
import itertools
import os
import resource
import select
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from sealsvc.client.methods import AsyncMethods, Methods
from sealsvc.core.errors import TABLE, Refusal
from sealsvc.core.model import IoMode
from sealsvc.protocol import codec
from sealsvc.protocol.messages import (
    DEFAULT_SOCKET,
    MAX_ANSWER_FDS,
    MAX_MESSAGE,
    Answer,
    AnyRequest,
    Event,
    Failure,
    FromService,
    Grant,
    Mapped,
    MappingReport,
    Push,
    Recall,
    Registered,
    Result,
    Return,
    SealInfo,
    decode_from_service,
)

if TYPE_CHECKING:
    from sealsvc.client.held import AsyncHeld, Held

T = TypeVar("T")


def socket_path() -> str:
    """Where the service listens: SEALSVC_SOCKET, else its default."""
    return os.environ.get("SEALSVC_SOCKET", DEFAULT_SOCKET)


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer and the descriptors that came with it."""

    result: Result
    fds: tuple[int, ...] = ()

    @property
    def seal(self) -> SealInfo:
        if not isinstance(self.result, SealInfo):
            raise TypeError(f"the answer is {type(self.result).__name__}, not a seal")
        return self.result


def _unavailable(path: str, error: OSError) -> Refusal:
    return Refusal(
        "service-unavailable",
        f"no service answers on {path}: {error.strerror or error}",
        {"socket": path},
    )


def _raised(failure: Failure) -> Refusal:
    # A newer service may know codes that this client does not.
    code = failure.code if failure.code in TABLE else "internal"
    return Refusal(code, failure.message, failure.details, failure.retry_after)


def _send(sock: socket.socket, request: AnyRequest, fds: Sequence[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([codec.outgoing(request)], ancillary)


def _receive(sock: socket.socket, flags: int = 0) -> tuple[FromService, tuple[int, ...]] | None:
    """One message, or None when the service has closed the connection."""
    # Not socket.recv_fds: Python 3.11's drops the flags, and the descriptors would survive exec.
    data, ancillary, flags, _ = sock.recvmsg(
        MAX_MESSAGE, socket.CMSG_SPACE(MAX_ANSWER_FDS * 4), flags | socket.MSG_CMSG_CLOEXEC
    )
    if not data:
        return None
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) // 4 * 4])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
    if flags & socket.MSG_TRUNC:
        raise Refusal("internal", "the service sent a message above the protocol's limit")
    message = decode_from_service(data)
    if flags & socket.MSG_CTRUNC:
        raise _Undelivered(message)
    return message, tuple(fds)


def _refused_connection(sock: socket.socket) -> Refusal | None:
    """Why the service closed the connection, if it said so before: to a user with too many."""
    for _ in range(2):  # the first may tell that our request was never read
        with suppress(OSError, msgspec.DecodeError, Refusal, _Undelivered):
            while received := _receive(sock, socket.MSG_DONTWAIT):
                if isinstance(received[0], Failure) and received[0].id is None:
                    return _raised(received[0])
    return None


class _Undelivered(Exception):
    """The kernel delivered `message` without its descriptors: there is no number left for them."""

    def __init__(self, message: FromService) -> None:
        super().__init__()
        self.message = message

    @property
    def seal(self) -> str | None:
        """What was granted, and nobody can use."""
        result = self.message.result if isinstance(self.message, Answer) else None
        granted = result.seal if isinstance(result, Registered) else result
        return granted.id if isinstance(granted, SealInfo) else None


def _out_of_descriptors(returned: str = "") -> Refusal:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Refusal(
        "out-of-descriptors",
        f"this process ({os.getpid()}) has no number left for a descriptor: its RLIMIT_NOFILE"
        f" (open files) is {limit}{returned}",
        {"pid": os.getpid(), "limit": limit},
    )


def _socket() -> socket.socket:
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise _out_of_descriptors() from None
        raise


def _connect(path: str) -> socket.socket:
    sock = _socket()
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise _unavailable(path, error) from None
    return sock


def _expected(reply: Reply, answer: type[T]) -> T:
    if not isinstance(reply.result, answer):
        for fd in reply.fds:
            os.close(fd)
        raise Refusal("internal", f"the service answered with {type(reply.result).__name__}")
    return reply.result


def _refuse_child(owner: int) -> None:
    if os.getpid() != owner:
        raise RuntimeError(f"this client is process {owner}'s: make one after fork(2)")


@contextmanager
def alone(lock: threading.Lock) -> Iterator[None]:
    """Two threads would take each other's answers, and the descriptors that came with them."""
    if not lock.acquire(blocking=False):
        raise RuntimeError("another thread uses this client just now: one client for each thread")
    try:
        yield
    finally:
        lock.release()


def _opened(path: str | os.PathLike[str], terms: dict[str, Any]) -> int:
    mode = os.O_RDONLY if terms.get("iomode") == IoMode.READ else os.O_RDWR
    return os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW)


class Client(Methods):
    """A blocking connection. Pushes that arrive while an answer is awaited are kept for `pushes`.
    One thread, one client: a call beside another thread's raises RuntimeError."""

    def __init__(self, path: str | None = None, timeout: float | None = 60.0) -> None:
        self.path = path or socket_path()
        self.timeout = timeout
        self._ids = itertools.count(1)
        self._pushes: deque[Push] = deque()
        self._owner = os.getpid()
        self._used = threading.Lock()
        self._sock = _connect(self.path)

    def reconnect(self, patience: float = 0.0) -> None:
        """Connect anew to a service that was restarted, trying for `patience` seconds. Seals
        outlive it; have their recalls sent here by Reclaim."""
        deadline = time.monotonic() + patience
        _refuse_child(self._owner)
        self._sock.close()
        while True:
            try:
                self._sock = _connect(self.path)
                return
            except Refusal:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, kind: type[AnyRequest], /, fds: Sequence[int] = (), **fields: Any) -> int:
        """Send a request without waiting; returns its id."""
        _refuse_child(self._owner)
        request = kind(id=next(self._ids), **fields)
        try:
            _send(self._sock, request, fds)
        except OSError as error:
            raise _refused_connection(self._sock) or _unavailable(self.path, error) from None
        return request.id

    def call(
        self,
        kind: type[AnyRequest],
        /,
        fds: Sequence[int] = (),
        timeout: float | None = None,
        **fields: Any,
    ) -> Reply:
        """Send a request and wait for its answer (`timeout` seconds; default: the client's)."""
        limit = self.timeout if timeout is None else timeout
        deadline = None if limit is None else time.monotonic() + limit
        with alone(self._used):
            try:
                return self._answer(self.send(kind, fds, **fields), deadline)
            except _Undelivered as undelivered:
                returned = ""
                if seal := undelivered.seal:
                    self._answer(self.send(Return, seal=seal), deadline)
                    returned = f"; seal {seal} was returned"
                raise _out_of_descriptors(returned) from None

    def _answer(self, wanted: int, deadline: float | None) -> Reply:
        while True:
            message, received = self._next(deadline)
            if isinstance(message, Push):
                self._pushes.append(message)
                continue
            if message.id is not None and message.id != wanted:
                for fd in received:
                    os.close(fd)
                continue
            if isinstance(message, Failure):
                raise _raised(message)
            return Reply(message.result, received)

    def _ask(self, kind: type[AnyRequest], answer: type[T], /, **fields: Any) -> T:
        said = {name: value for name, value in fields.items() if value is not None}
        return _expected(self.call(kind, **said), answer)

    def grant(self, fds: Sequence[int] = (), **fields: Any) -> Reply:
        return self.call(Grant, fds, **fields)

    def validate(
        self, seal: str, address: int | None = None, seqid: int | None = None
    ) -> MappingReport:
        """Have the mapping of the seal's range in its holder proven; `address` is where the range
        begins there. Raises Refusal `mapping-invalid` with what is not as required."""
        result = self.call(Mapped, seal=seal, address=address, seqid=seqid).result
        if not isinstance(result, MappingReport):
            raise TypeError(f"the answer is {type(result).__name__}, not a mapping report")
        return result

    def hold(
        self,
        path: str | os.PathLike[str],
        on_recall: Callable[[Recall], None] | None = None,
        **terms: Any,
    ) -> Held:
        """Seal a file, with this process as the holder, until the end of a `with` block.

        `terms` are fields of Grant (kind, offset, length, grace, ...). The file is opened here:
        every user who may open it may seal it. `on_recall` is called in another thread, with each
        Recall: stop using the mapping, and leave the block. Raises OSError when the file cannot be
        opened, and Refusal."""
        from sealsvc.client.held import Held

        opened = _opened(path, terms)
        own = Client(self.path, self.timeout)
        try:
            seal = own.grant([opened], **terms).seal
        except BaseException:
            own.close()
            os.close(opened)
            raise
        return Held(own, opened, seal, on_recall)

    def interrupt(self) -> None:
        """End `pushes` in another thread, and the connection with it."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def pushes(self, timeout: float | None = None) -> Iterator[Push]:
        """Recalls and events as they arrive; ends after `timeout` seconds without one, or when
        the service goes away."""
        while True:
            if self._pushes:
                yield self._pushes.popleft()
                continue
            try:
                deadline = None if timeout is None else time.monotonic() + timeout
                with alone(self._used):
                    message, _ = self._next(deadline)
            except TimeoutError:
                return
            except _Undelivered:  # the late answer of a call that has timed out
                continue
            except Refusal as refusal:
                if refusal.code == "service-unavailable":
                    return
                raise
            if isinstance(message, Push):
                yield message

    def _next(self, deadline: float | None) -> tuple[FromService, tuple[int, ...]]:
        _refuse_child(self._owner)
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        if not poller.poll(None if remaining is None else remaining * 1000):
            raise TimeoutError(f"no answer from {self.path} in time")
        try:
            received = _receive(self._sock)
        except OSError as error:
            raise _refused_connection(self._sock) or _unavailable(self.path, error) from None
        except msgspec.DecodeError as error:
            raise Refusal("internal", f"unreadable message from the service: {error}") from None
        if received is None:
            raise Refusal(
                "service-unavailable", f"the service on {self.path} closed the connection"
            )
        return received


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
        return self._sock is not None

    async def connect(self) -> None:
        sock = _socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, self.path)
        except OSError as error:
            sock.close()
            raise _unavailable(self.path, error) from None
        self._sock, self._loop = sock, asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    async def close(self) -> None:
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
        _refuse_child(self._owner)
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
            _send(self._sock, request, fds)
            async with asyncio.timeout(timeout):
                return await future
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise _unavailable(self.path, error) from None
        finally:
            self._waiting.pop(request.id, None)

    async def _ask(self, kind: type[AnyRequest], answer: type[T], /, **fields: Any) -> T:
        said = {name: value for name, value in fields.items() if value is not None}
        return _expected(await self.call(kind, **said), answer)

    async def hold(
        self,
        path: str | os.PathLike[str],
        on_recall: Callable[[Recall], Awaitable[None] | None] | None = None,
        **terms: Any,
    ) -> AsyncHeld:
        """As Client.hold, for `async with await client.hold(path) as held`; `on_recall` is called
        in the event loop, and may be a coroutine function."""
        from sealsvc.client.held import AsyncHeld

        opened = _opened(path, terms)
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
            received = _receive(self._sock)
        except (BlockingIOError, InterruptedError):
            return
        except _Undelivered as undelivered:
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
            self._lost(str(_raised(message)))
        else:
            self._answer(message, fds)

    def _undelivered(self, undelivered: _Undelivered) -> None:
        """A seal that nobody can use is given back; its answer comes to nobody."""
        returned = ""
        if (seal := undelivered.seal) and self._sock is not None:
            with suppress(OSError):
                _send(self._sock, Return(id=next(self._ids), seal=seal), ())
                returned = f"; seal {seal} is returned"
        number = getattr(undelivered.message, "id", None)
        future = self._waiting.get(number) if number is not None else None
        if future is not None and not future.done():
            future.set_exception(_out_of_descriptors(returned))

    def _answer(self, message: Answer | Failure, fds: tuple[int, ...]) -> None:
        future = self._waiting.get(message.id) if message.id is not None else None
        if future is None or future.done():
            for fd in fds:
                os.close(fd)
        elif isinstance(message, Failure):
            future.set_exception(_raised(message))
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


__all__ = ["AsyncClient", "Client", "Event", "Reply", "socket_path"]
