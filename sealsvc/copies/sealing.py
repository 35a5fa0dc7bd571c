"""The copy's own seals: exclusive ones on both files, for as long as an offload runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace

from sealsvc.client import Client
from sealsvc.copies.ends import End, Ends
from sealsvc.errors import Refusal
from sealsvc.messages import Recall, Return
from sealsvc.model import Conflict, Fence, IoMode, Kind

_GRACE = 30.0  # seconds; one call of an offload takes less
_LISTEN = 0.1  # seconds between two looks whether the copy is over


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
    reply = client.grant(
        [end.fd],
        kind=Kind.EXCLUSIVE,
        conflict=Conflict.WAIT,
        fence=Fence.NONE,
        iomode=IoMode.RW if writable else IoMode.READ,
        grace=_GRACE,
        tag="copy",
    )
    return reply.seal.id


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
