"""One connection of the control socket: receives requests; sends answers, events and descriptors.

Requests are limited in size and number, and decoded to typed messages, before anything uses them.
While a client does not read its answers, nothing is read from it; if it does not read what is
pushed either, the connection is closed. Each request runs in its own task. The descriptors of a
message belong to a Received from the moment they are read, and are closed in threads of their user,
never here.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from sealsvc.control.framing import descriptors_of, failure, id_of, parse
from sealsvc.control.turns import Metered, Turns
from sealsvc.core.errors import Refusal, of_kin
from sealsvc.linux import processes
from sealsvc.linux.processes import Peer, Process
from sealsvc.protocol import codec, fixed
from sealsvc.protocol.base import MAX_MESSAGE
from sealsvc.protocol.events import Event, Watch, Watching
from sealsvc.protocol.messages import Answer, AnyRequest, Cancel, Done, Failure, Push, Result
from sealsvc.runtime import faults
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks
from sealsvc.runtime.users import Received, User, Users

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64  # requests of one connection
# Of an operator's connection: the REST API sends the requests of all principals on one connection,
# and limits each principal itself.
MAX_IN_FLIGHT_OF_OPERATORS = 1024
MAX_QUEUED = 2048  # messages that a client has not read, at which its connection is closed
_EVENTS_QUEUED = 32  # messages that a client has not read, at which no event is added
MAX_UNREAD = 64  # messages that a client has not read, at which nothing is read from it

# Room for SCM_MAX_FD descriptors: in recvmsg(2) the kernel would drop those for which there is no
# room, and so close them on this thread.
_RIGHTS = socket.CMSG_SPACE(253 * 4)

# One buffer for all connections: the event loop reads one message at a time, and copies it.
_ROOM = memoryview(bytearray(MAX_MESSAGE))


@dataclass(slots=True)
class Reply:
    """A result, and descriptors to send with it, which are closed after that."""

    result: Result
    fds: list[int] = field(default_factory=list)


# A handler takes the descriptors that it keeps out of Received.
Handler = Callable[["Connection", AnyRequest, Received], Awaitable[Reply]]


class Server(Protocol):
    """What a connection needs of its server."""

    handler: Handler
    events: EventLog
    tasks: Tasks
    users: Users
    may_watch: Callable[[Peer], bool]
    turns: Turns
    connections: set[Connection]

    def disconnect(self, sock: socket.socket, user: User) -> None:
        """Shut the socket down, which the peer sees at once, and close it in a thread of the
        user."""


class Connection:
    """A client's connection. `peer` has the credentials of the process that connected."""

    def __init__(self, sock: socket.socket, server: Server, peer: Peer, user: User) -> None:
        self.sock, self.server, self.peer, self.user = sock, server, peer, user
        # Looked for only when it is needed: most connections need none, and it takes longer than
        # all the rest. The kernel keeps the peer's struct pid, so that it is no other process.
        self._process = None if processes.has_peer_pidfd() else processes.of_socket(sock)
        self._requests: dict[int, asyncio.Task[None]] = {}
        operator = server.may_watch(peer)
        self._most_requests = MAX_IN_FLIGHT_OF_OPERATORS if operator else MAX_IN_FLIGHT
        self._out: deque[tuple[bytes, list[int]]] = deque()
        # The number of the event that was sent last; None: the client does not watch events.
        self._watched: int | None = None
        self._pumping = False
        self._is_read = True
        self._is_waited_for = False  # until it can be written to
        self._fd = sock.fileno()
        self._is_fixed: bool | None = None  # its messages, from the first on (protocol/fixed.py)
        self.open = True

    @property
    def process(self) -> Process:
        """The process that connected. Raises Refusal `no-such-holder` when it has ended."""
        if self._process is None:
            if not self.open:
                raise Refusal("no-such-holder", "the client has left")
            self._process = processes.of_socket(self.sock)
        return self._process

    # Reading

    def start(self) -> None:
        """Read from now on. Raises OSError when no descriptor is left."""
        self.server.turns.add(self.user, self._fd, self.read)

    def read(self) -> bool:
        """Read one message, and start its request. False when there was none, or when nothing more
        is to be read now."""
        try:
            # A message cannot be read without its descriptors: if its user has too many open
            # already, the connection is closed instead.
            self.server.users.refuse_more_descriptors(self.user)
        except Refusal as refusal:
            self.send(failure(None, refusal))
            self.close()
            return False
        try:
            size, ancillary, flags, _ = self.sock.recvmsg_into(
                [_ROOM], _RIGHTS, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.close()
            return False
        received = Received(descriptors_of(ancillary), self.user, self.server.users)
        if not size:
            received.close()
            self.close()
            return False
        self._received(bytes(_ROOM[:size]), received, flags)
        return self.open and self._is_read

    def _received(self, data: bytes, received: Received, flags: int) -> None:
        is_fixed = fixed.is_fixed(data)
        if self._is_fixed is None:
            self._is_fixed = is_fixed
        try:
            if is_fixed is not self._is_fixed:
                raise Refusal("bad-request", "this connection has sent messages of the other form")
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
            f"request {type(request).__name__} of {self.peer.pid}", self._metered(request, received)
        )
        self._requests[request.id] = task

        def done(_: object) -> None:
            # Not in the coroutine, which never runs if it is cancelled before its first step.
            received.close()
            self.server.users.give_back(self.user, "requests")
            self._requests.pop(request.id, None)

        task.add_done_callback(done)

    async def _metered(self, request: AnyRequest, received: Received) -> None:
        await Metered(self._serve(request, received), self.user)

    async def _serve(self, request: AnyRequest, received: Received) -> None:
        try:
            reply = await self._answer(request, received)
            self.send(Answer(id=request.id, result=reply.result), reply.fds)
            faults.point(f"{type(request).__name__.lower()}:answered")
        except Refusal as refusal:
            self.send(failure(request.id, of_kin(refusal)))
        except asyncio.CancelledError:
            self.send(failure(request.id, Refusal("cancelled", "the request was cancelled")))
        except OSError as error:  # from a call whose errors are not turned into a Refusal
            log.warning("request %s of pid %d: %s", type(request).__name__, self.peer.pid, error)
            told = Refusal("io-error", str(error), {"errno": error.errno})
            self.send(failure(request.id, of_kin(told)))
        except Exception as error:  # a bug: the client gets `internal`, the log the traceback
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
        """Send events while the client reads them. Events that it has not read stay in the event
        log, so that a slow client loses only those that the log no longer keeps."""
        if self._pumping:
            return  # called by send() in the loop below
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
        """Continue with the oldest event that the log keeps. The client is sent an event `gap` with
        the number of events that it lost, unless it is `told` in another way."""
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
        """Send a message, or queue it while the client does not read. False when the connection is
        closed. Takes ownership of the descriptors. A message larger than MAX_MESSAGE is replaced by
        a failure `too-large`."""
        data, fds = self._encoded(message), fds or []
        if len(data) > MAX_MESSAGE:
            self.user.close_later(fds)
            fds = []
            large = Refusal("too-large", "the answer is larger than a message may be; ask for less")
            data = self._encoded(failure(getattr(message, "id", None), large))
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

    def _encoded(self, message: Answer | Failure | Push) -> bytes:
        if self._is_fixed and isinstance(message, (Answer, Failure)):
            return fixed.encoded(message)
        return codec.encoded(message)

    def writable(self) -> None:
        """Send queued messages. Called by the event loop."""
        loop = asyncio.get_running_loop()
        while self._out:
            data, fds = self._out[0]
            try:
                rights = array.array("i", fds)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
                self.sock.sendmsg([data], ancillary)
            except (BlockingIOError, InterruptedError):
                loop.add_writer(self.sock, self.writable)
                self._is_waited_for = True
                self._read_or_wait()
                return
            except OSError:
                self.close()
                return
            self.user.close_later(fds)
            self._out.popleft()
        if self._is_waited_for:
            loop.remove_writer(self.sock)
            self._is_waited_for = False
        self._read_or_wait()
        self._pump()

    def _read_or_wait(self) -> None:
        """Stop reading requests while the client has MAX_UNREAD messages to read."""
        if not self.open or self._is_read == (len(self._out) < MAX_UNREAD):
            return
        self._is_read = not self._is_read
        if self._is_read:
            self.server.turns.add(self.user, self._fd, self.read)
        else:
            self.server.turns.remove(self.user, self._fd)

    def close(self) -> None:
        """Close the connection. Its requests are cancelled, and undo what they did. It counts
        towards the limits until its socket is closed, which happens in a thread, because unread
        messages may hold the last reference to a descriptor."""
        if not self.open:
            return
        self.open = False
        self.server.turns.remove(self.user, self._fd)
        if self._is_waited_for:
            asyncio.get_running_loop().remove_writer(self.sock)
        self.server.events.unwatch(self._event)
        self.server.connections.discard(self)
        for task in tuple(self._requests.values()):
            task.cancel()
        for _, fds in self._out:
            self.user.close_later(fds)
        self._out.clear()
        if self._process is not None:
            self._process.close()
        self.server.disconnect(self.sock, self.user)
