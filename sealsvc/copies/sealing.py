"""The copy's own seals: exclusive ones on both files, for as long as an offload runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from sealsvc.client import Client
from sealsvc.copies import calls
from sealsvc.copies.ends import End, Ends
from sealsvc.copies.tags import SEAL_TAG
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Conflict, Fence, IoMode, Kind
from sealsvc.protocol.seals import Recall, Return

_GRACE = 30.0  # seconds; one call of an offload takes less
_PATIENCE = 1.0  # seconds
_LISTEN = 0.1  # seconds between two looks whether the copy is over


def reopened(ends: Ends) -> Ends:
    """The same files by descriptions of our own, in place of those that were passed, which are
    closed. Whoever shares a description can change the map through it unseen, if it was opened
    before its file system was watched; of one that is left with the asker the seal's proof that
    nobody else has the file open knows, and refuses. Call it only where no seal stands in the way:
    opening an exclusively sealed file waits. Raises OSError."""
    with calls.own_rights():  # no more than the descriptors' own modes
        there = os.open(f"/proc/self/fd/{ends.destination.fd}", os.O_RDWR | os.O_CLOEXEC)
        source = there
        if not ends.same_file:
            source = os.open(f"/proc/self/fd/{ends.source.fd}", os.O_RDONLY | os.O_CLOEXEC)
    for fd in {ends.source.fd, ends.destination.fd}:
        os.close(fd)
    return Ends(replace(ends.source, fd=source), replace(ends.destination, fd=there))


@contextmanager
def sealed(socket: str, ends: Ends, cancel: threading.Event) -> Iterator[Ends]:
    """Both files under exclusive seals, looked at anew, while the context lasts. `cancel` is set
    when either is recalled: the holder's part is then to leave. Raises Refusal when a seal is not
    to be had."""
    with ExitStack() as stack:
        client = stack.enter_context(Client(socket, timeout=60.0))
        seals: list[str] = []
        stack.callback(_give_back, client, seals)
        seals.append(_grant(client, ends.source, writable=ends.same_file))
        if not ends.same_file:
            seals.append(_grant(client, ends.destination, writable=True))
        pinned = Ends(_pinned(ends.source), _pinned(ends.destination))
        stack.enter_context(_listening(client, cancel))
        yield pinned


def _grant(client: Client, end: End, *, writable: bool) -> str:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            reply = client.grant(
                [end.fd],
                kind=Kind.EXCLUSIVE,
                conflict=Conflict.WAIT,
                fence=Fence.NONE,
                iomode=IoMode.RW if writable else IoMode.READ,
                grace=_GRACE,
                tag=SEAL_TAG,
            )
            return reply.seal.id
        except Refusal as refusal:
            # The asker, or the service, may be about to close what it passed.
            if refusal.code != "file-in-use" or time.monotonic() > deadline:
                raise
        time.sleep(_LISTEN)


def _pinned(end: End) -> End:
    return replace(end, pinned=True).again()


def _give_back(client: Client, seals: Sequence[str]) -> None:
    """What cannot be returned ends with this process."""
    for seal in seals:
        with suppress(Refusal, OSError):
            client.call(Return, seal=seal)


@contextmanager
def _listening(client: Client, cancel: threading.Event) -> Iterator[None]:
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            for push in client.pushes(_LISTEN):
                if isinstance(push, Recall):
                    cancel.set()
                if over.is_set():
                    return

    thread = threading.Thread(target=listen, name="copy-recalls", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
