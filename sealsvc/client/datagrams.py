"""What both clients of the control socket do: datagrams with descriptors, and what can go wrong."""

from __future__ import annotations

import array
import errno
import os
import resource
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from sealsvc.core.errors import TABLE, Refusal
from sealsvc.core.model import IoMode
from sealsvc.protocol import codec
from sealsvc.protocol.base import DEFAULT_SOCKET, MAX_ANSWER_FDS, MAX_MESSAGE
from sealsvc.protocol.messages import (
    Answer,
    AnyRequest,
    Failure,
    FromService,
    Result,
    decode_from_service,
)
from sealsvc.protocol.rings import Registered
from sealsvc.protocol.seals import SealInfo

if TYPE_CHECKING:
    pass

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
        """The seal of the answer. Raises TypeError when the answer is something else."""
        if not isinstance(self.result, SealInfo):
            raise TypeError(f"the answer is {type(self.result).__name__}, not a seal")
        return self.result


def unavailable(path: str, error: OSError) -> Refusal:
    """The refusal for a socket at `path` that could not be reached."""
    return Refusal(
        "service-unavailable",
        f"no service answers on {path}: {error.strerror or error}",
        {"socket": path},
    )


def raised(failure: Failure) -> Refusal:
    """The refusal that a Failure stands for."""
    # A newer service may know codes that this client does not.
    code = failure.code if failure.code in TABLE else "internal"
    return Refusal(code, failure.message, failure.details, failure.retry_after)


def send(sock: socket.socket, request: AnyRequest, fds: Sequence[int]) -> None:
    """Send a request with descriptors, in one datagram. Raises OSError."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([codec.outgoing(request)], ancillary)


def receive(sock: socket.socket, flags: int = 0) -> tuple[FromService, tuple[int, ...]] | None:
    """One message and its descriptors, or None when the service has closed the connection. Raises
    OSError, Undelivered, msgspec.DecodeError, and Refusal `internal` for a message above the
    protocol's limit."""
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
        raise Undelivered(message)
    return message, tuple(fds)


def refused_connection(sock: socket.socket) -> Refusal | None:
    """Why the service closed the connection, if it said so before: to a user with too many."""
    for _ in range(2):  # the first may tell that our request was never read
        with suppress(OSError, msgspec.DecodeError, Refusal, Undelivered):
            while received := receive(sock, socket.MSG_DONTWAIT):
                if isinstance(received[0], Failure) and received[0].id is None:
                    return raised(received[0])
    return None


class Undelivered(Exception):
    """`message` came without its descriptors: this process has no number left for them. The kernel
    then drops them, and sets MSG_CTRUNC (recvmsg(2), net/core/scm.c)."""

    def __init__(self, message: FromService) -> None:
        super().__init__()
        self.message = message

    @property
    def seal(self) -> str | None:
        """What was granted, and nobody can use."""
        result = self.message.result if isinstance(self.message, Answer) else None
        granted = result.seal if isinstance(result, Registered) else result
        return granted.id if isinstance(granted, SealInfo) else None


def out_of_descriptors(returned: str = "") -> Refusal:
    """The refusal for a process without a number for another descriptor; `returned` is appended to
    its text."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Refusal(
        "out-of-descriptors",
        f"this process ({os.getpid()}) has no number left for a descriptor: its RLIMIT_NOFILE"
        f" (open files) is {limit}{returned}",
        {"pid": os.getpid(), "limit": limit},
    )


def new_socket() -> socket.socket:
    """A socket that is not connected. Raises Refusal `out-of-descriptors`, OSError."""
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise out_of_descriptors() from None
        raise


def connect(path: str) -> socket.socket:
    """A socket that is connected to the service at `path`. Raises Refusal `service-unavailable` or
    `out-of-descriptors`."""
    sock = new_socket()
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise unavailable(path, error) from None
    return sock


def expected(reply: Reply, answer: type[T]) -> T:
    """The answer, which must be of this type. Raises Refusal `internal`, and closes its
    descriptors, when it is not."""
    if not isinstance(reply.result, answer):
        for fd in reply.fds:
            os.close(fd)
        raise Refusal("internal", f"the service answered with {type(reply.result).__name__}")
    return reply.result


def refuse_child(owner: int) -> None:
    """Raises RuntimeError in another process than `owner`, which made the client."""
    if os.getpid() != owner:
        raise RuntimeError(f"this client is process {owner}'s: make one after fork(2)")


@contextmanager
def alone(lock: threading.Lock) -> Iterator[None]:
    """A context for one thread at a time: two would take each other's answers, and the descriptors
    that came with them. Raises RuntimeError when another is inside."""
    if not lock.acquire(blocking=False):
        raise RuntimeError("another thread uses this client just now: one client for each thread")
    try:
        yield
    finally:
        lock.release()


def open_to_seal(path: str | os.PathLike[str], terms: dict[str, Any]) -> int:
    """Open a file with the access that a seal with these terms needs. Raises OSError."""
    mode = os.O_RDONLY if terms.get("iomode") == IoMode.READ else os.O_RDWR
    return os.open(path, mode | os.O_CLOEXEC | os.O_NOFOLLOW)
