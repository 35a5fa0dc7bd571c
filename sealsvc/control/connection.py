"""One connection: requests in, answers, events and descriptors out.

What it sends is bounded and typed before anything looks at it. One that does not read its answers
is not read from, and one that does not read what is pushed is ended. Each request runs in a task of
its own. The descriptors of a message belong to a Received from the moment they are read, and are
closed in threads of their user: nothing here closes one.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from sealsvc.control.framing import descriptors_of, failure, id_of, parse
from sealsvc.core.errors import Refusal, of_kin
from sealsvc.linux import processes
from sealsvc.linux.processes import Peer, Process
from sealsvc.protocol import codec
from sealsvc.protocol.base import MAX_MESSAGE
from sealsvc.protocol.events import Event, Watch, Watching
from sealsvc.protocol.messages import Answer, AnyRequest, Cancel, Done, Failure, Push, Result
from sealsvc.runtime import faults
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.users import Received, User, Users

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64  # requests of one connection
# Of an operator's: the REST API asks for all its principals on one, each of whom has a share there.
MAX_IN_FLIGHT_OF_OPERATORS = 1024
MAX_QUEUED = 2048  # messages one connection has not read
_EVENTS_QUEUED = 32  # messages above which no event is added
MAX_UNREAD = 64  # messages from which on a connection is not read from

# SCM_MAX_FD: with less room the kernel would drop what is beyond it in recvmsg, on this thread.
_RIGHTS = socket.CMSG_SPACE(253 * 4)

# One for all connections: the event loop reads one message at a time, and keeps a copy of its size.
_ROOM = memoryview(bytearray(MAX_MESSAGE))


class Turn:
    """How much is done for each user in one turn of the event loop: then come the others."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: Counter[int] = Counter()

    def take(self, uid: int) -> bool:
        """False when it has to wait for the next turn."""
        if not self._taken:
            # What is ready comes after what was called for before: this is the next turn's first.
            asyncio.get_running_loop().call_soon(self._taken.clear)
        self._taken[uid] += 1
        return self._taken[uid] <= self._most


@dataclass(slots=True)
class Reply:
    """A result, and descriptors to send with it, which are closed afterwards."""

    result: Result
    fds: list[int] = field(default_factory=list)


# It takes out of Received what it keeps.
Handler = Callable[["Connection", AnyRequest, Received], Awaitable[Reply]]


class Server(Protocol):
    """What a connection needs of its server."""

    handler: Handler
    events: EventLog
    tasks: Tasks
    users: Users
    may_watch: Callable[[Peer], bool]
    turn: Turn
    connections: set[Connection]

    def disconnect(self, sock: socket.socket, user: User) -> None:
        """The peer sees the end at once; the socket is closed in a thread of the user."""


class Connection:
    def __init__(self, sock: socket.socket, server: Server, peer: Peer, user: User) -> None:
        self.sock, self.server, self.peer, self.user = sock, server, peer, user
        self.process: Process = processes.of_socket(sock)
        self._requests: dict[int, asyncio.Task[None]] = {}
        operator = server.may_watch(peer)
        self._most_requests = MAX_IN_FLIGHT_OF_OPERATORS if operator else MAX_IN_FLIGHT
        self._out: deque[tuple[bytes, list[int]]] = deque()
        # The number of the event that was sent last; None: events are not asked for.
        self._watched: int | None = None
        self._pumping = False
        self._is_read = True
        self.open = True

    # Reading

    def readable(self) -> None:
        while self.open and self._is_read and self.server.turn.take(self.peer.uid):
            try:
                # A message is not looked at before its descriptors are received: who has too many
                # open already is heard no more.
                self.server.users.refuse_more_descriptors(self.user)
            except Refusal as refusal:
                self.send(failure(None, refusal))
                self.close()
                return
            try:
                size, ancillary, flags, _ = self.sock.recvmsg_into(
                    [_ROOM], _RIGHTS, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            received = Received(descriptors_of(ancillary), self.user, self.server.users)
            if not size:
                received.close()
                self.close()
                return
            self._received(bytes(_ROOM[:size]), received, flags)

    def _received(self, data: bytes, received: Received, flags: int) -> None:
        try:
            request = parse(data, flags, len(received))
            if len(self._requests) >= self._most_requests:
                message = f"{self._most_requests} requests are in flight on this connection"
                raise Refusal("limit-reached", message)
            if request.id in self._requests:
                raise Refusal("bad-request", f"request id {request.id} is in flight already")
            self.server.users.take(self.user, "requests")
        except Refusal as refusal:
            received.close()
            self.send(failure(id_of(data), refusal))
            return
        task = self.server.tasks.spawn(
            f"request {type(request).__name__} of {self.peer.pid}", self._serve(request, received)
        )
        self._requests[request.id] = task

        def done(_: object) -> None:
            # Not in the coroutine: one that is cancelled before its first step never runs.
            received.close()
            self.server.users.give_back(self.user, "requests")
            self._requests.pop(request.id, None)

        task.add_done_callback(done)

    async def _serve(self, request: AnyRequest, received: Received) -> None:
        try:
            reply = await self._answer(request, received)
            self.send(Answer(id=request.id, result=reply.result), reply.fds)
            faults.point(f"{type(request).__name__.lower()}:answered")
        except Refusal as refusal:
            self.send(failure(request.id, of_kin(refusal)))
        except asyncio.CancelledError:
            self.send(failure(request.id, Refusal("cancelled", "the request was cancelled")))
        except OSError as error:  # of a call that has no words of its own
            log.warning("request %s of pid %d: %s", type(request).__name__, self.peer.pid, error)
            told = Refusal("io-error", str(error), {"errno": error.errno})
            self.send(failure(request.id, of_kin(told)))
        except Exception as error:  # the supervisor of requests: a defect of ours, told as one
            log.exception("request %s of pid %d", type(request).__name__, self.peer.pid)
            self.send(failure(request.id, Refusal("internal", repr(error))))

    async def _answer(self, request: AnyRequest, received: Received) -> Reply:
        if isinstance(request, Watch):
            return Reply(self._watch(request))
        if isinstance(request, Cancel):
            if task := self._requests.get(request.request):
                task.cancel()
            return Reply(Done())
        return await self.server.handler(self, request, received)

    # Events

    def _watch(self, request: Watch) -> Watching:
        if not self.server.may_watch(self.peer):
            raise Refusal("denied", f"uid {self.peer.uid} may not watch events")
        events, since = self.server.events, request.since
        beyond = since is not None and since > events.seq  # a number of another run
        gap = beyond or (since is not None and events.after(max(0, since), 0)[1] > 0)
        if self._watched is None:
            events.watch(self._event)
        self._watched = events.seq if since is None or beyond else max(0, since)
        if gap and not beyond:
            self._skip_what_is_lost(told=True)
        self._pump()
        return Watching(seq=events.seq, gap=gap, run=events.run)

    def _event(self, event: Event) -> None:  # noqa: ARG002 (it is read from the log)
        self._pump()

    def _pump(self) -> None:
        """Send events as long as the reader takes them. What it has not taken stays in the log, so
        that a slow reader loses only what the log no longer keeps."""
        if self._pumping:
            return  # called by a send() of our own
        self._pumping = True
        try:
            while self.open and self._watched is not None and len(self._out) < _EVENTS_QUEUED:
                self._skip_what_is_lost()
                batch, _ = self.server.events.after(self._watched, _EVENTS_QUEUED)
                if not batch:
                    return
                for event in batch:
                    self._watched = event.seq
                    self.send(event)
        finally:
            self._pumping = False

    def _skip_what_is_lost(self, *, told: bool = False) -> None:
        """Go on with the oldest event that is kept. The reader hears at once how many it lost,
        unless it is `told` otherwise."""
        assert self._watched is not None
        _, lost = self.server.events.after(self._watched, 0)
        if not lost:
            return
        self._watched += lost
        if not told:
            data = {"dropped": lost}
            self.send(Event(seq=self._watched, time=time.time(), name="gap", data=data))

    # Writing

    def send(self, message: Answer | Failure | Push, fds: list[int] | None = None) -> bool:
        """False when the connection is gone. Takes the descriptors over."""
        data, fds = codec.encoded(message), fds or []
        if len(data) > MAX_MESSAGE:
            self.user.close_later(fds)
            fds = []
            large = Refusal("too-large", "the answer is larger than a message may be; ask for less")
            data = codec.encoded(failure(getattr(message, "id", None), large))
        if not self.open:
            self.user.close_later(fds)
            return False
        if len(self._out) >= MAX_QUEUED:
            log.warning("pid %d does not read its messages: closing", self.peer.pid)
            self.user.close_later(fds)
            self.close()
            return False
        self._out.append((data, fds))
        if len(self._out) == 1:
            self.writable()
        self._read_or_wait()
        return self.open

    def writable(self) -> None:
        loop = asyncio.get_running_loop()
        while self._out:
            data, fds = self._out[0]
            try:
                rights = array.array("i", fds)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
                self.sock.sendmsg([data], ancillary)
            except (BlockingIOError, InterruptedError):
                loop.add_writer(self.sock, self.writable)
                self._read_or_wait()
                return
            except OSError:
                self.close()
                return
            self.user.close_later(fds)
            self._out.popleft()
        loop.remove_writer(self.sock)
        self._read_or_wait()
        self._pump()

    def _read_or_wait(self) -> None:
        """Whoever does not read what it asked for does not ask for more."""
        if not self.open or self._is_read == (len(self._out) < MAX_UNREAD):
            return
        self._is_read = not self._is_read
        loop = asyncio.get_running_loop()
        if self._is_read:
            loop.add_reader(self.sock, self.readable)
        else:
            loop.remove_reader(self.sock)

    def close(self) -> None:
        """Requests that are under way are cancelled, and undo themselves. The connection counts
        until its socket is closed, which happens in a thread: what it holds unread is dropped."""
        if not self.open:
            return
        self.open = False
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.sock)
        loop.remove_writer(self.sock)
        self.server.events.unwatch(self._event)
        self.server.connections.discard(self)
        for task in tuple(self._requests.values()):
            task.cancel()
        for _, fds in self._out:
            self.user.close_later(fds)
        self._out.clear()
        self.process.close()
        self.server.disconnect(self.sock, self.user)
