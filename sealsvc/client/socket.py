"""The blocking client of the control socket.

It raises `Refusal` for the service's answers of "no", and `service-unavailable` when it is not
there. Descriptors that come with an answer belong to the caller. A connection is its process's own:
in a child of fork(2) every call raises RuntimeError.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from sealsvc.client.methods import Methods
from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import (
    AnyRequest,
    Failure,
    FromService,
    Push,
)
from sealsvc.protocol.seals import Grant, Mapped, MappingReport, Recall, Return

if TYPE_CHECKING:
    from sealsvc.client.held import Held

from sealsvc.client.datagrams import (
    Reply,
    Undelivered,
    alone,
    connect,
    expected,
    open_to_seal,
    out_of_descriptors,
    raised,
    receive,
    refuse_child,
    refused_connection,
    send,
    socket_path,
    unavailable,
)

T = TypeVar("T")


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
        self._sock = connect(self.path)

    def reconnect(self, patience: float = 0.0) -> None:
        """Connect anew to a service that was restarted, trying for `patience` seconds. Seals
        outlive it; have their recalls sent here by Reclaim."""
        deadline = time.monotonic() + patience
        refuse_child(self._owner)
        self._sock.close()
        while True:
            try:
                self._sock = connect(self.path)
                return
            except Refusal:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)

    def fileno(self) -> int:
        """The descriptor of the connection: it can be read when something was pushed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the connection. Recalls of seals that were granted through it reach nobody any
        more."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, kind: type[AnyRequest], /, fds: Sequence[int] = (), **fields: Any) -> int:
        """Send a request without waiting; returns its id."""
        refuse_child(self._owner)
        request = kind(id=next(self._ids), **fields)
        try:
            send(self._sock, request, fds)
        except OSError as error:
            raise refused_connection(self._sock) or unavailable(self.path, error) from None
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
            except Undelivered as undelivered:
                returned = ""
                if seal := undelivered.seal:
                    self._answer(self.send(Return, seal=seal), deadline)
                    returned = f"; seal {seal} was returned"
                raise out_of_descriptors(returned) from None

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
                raise raised(message)
            return Reply(message.result, received)

    def _ask(self, kind: type[AnyRequest], answer: type[T], /, **fields: Any) -> T:
        said = {name: value for name, value in fields.items() if value is not None}
        return expected(self.call(kind, **said), answer)

    def grant(self, fds: Sequence[int] = (), **fields: Any) -> Reply:
        """Ask for a seal: the fields of Grant, and the descriptors that it may take. The answer's
        `seal` is granted; the descriptors in it are the caller's. Raises Refusal."""
        return self.call(Grant, fds, **fields)

    def validate(
        self, seal: str, address: int | None = None, seqid: int | None = None
    ) -> MappingReport:
        """Have the mapping of the seal's range in its holder proven; `address` is where the range
        begins there. Raises Refusal `mapping-invalid` with what is not as required, TypeError when
        the answer is no mapping report."""
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

        opened = open_to_seal(path, terms)
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
            except Undelivered:  # the late answer of a call that has timed out
                continue
            except Refusal as refusal:
                if refusal.code == "service-unavailable":
                    return
                raise
            if isinstance(message, Push):
                yield message

    def _next(self, deadline: float | None) -> tuple[FromService, tuple[int, ...]]:
        refuse_child(self._owner)
        remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        if not poller.poll(None if remaining is None else remaining * 1000):
            raise TimeoutError(f"no answer from {self.path} in time")
        try:
            received = receive(self._sock)
        except OSError as error:
            raise refused_connection(self._sock) or unavailable(self.path, error) from None
        except msgspec.DecodeError as error:
            raise Refusal("internal", f"unreadable message from the service: {error}") from None
        if received is None:
            raise Refusal(
                "service-unavailable", f"the service on {self.path} closed the connection"
            )
        return received
