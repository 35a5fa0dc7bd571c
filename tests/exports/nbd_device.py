"""An NBD export as a file of block_load.py: for Debian's Python, which has libnbd's bindings."""

from __future__ import annotations

import time
from collections.abc import Callable

import nbd

AWAY = 60.0  # seconds that a server may be gone, as nbd-client's -timeout


class NbdDevice:
    """Of one thread. A request without an answer is sent again on a new connection, as clients that
    reconnect do it: the server that was killed may have carried it out or not."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client = self._connect()

    @property
    def size(self) -> int:
        return int(self._client.get_size())

    def _connect(self) -> nbd.NBD:
        until = time.monotonic() + AWAY
        while True:
            client = nbd.NBD()
            try:
                client.connect_uri(self._uri)
                return client
            except nbd.Error:
                if time.monotonic() > until:
                    raise
                time.sleep(0.001)

    def _carried_out(self, request: Callable[[], object]) -> object:
        while True:
            try:
                return request()
            except nbd.Error:
                if not self._client.aio_is_dead() and not self._client.aio_is_closed():
                    raise  # the server's own answer
                self._client = self._connect()

    def write(self, view: memoryview, offset: int) -> None:
        self._carried_out(lambda: self._client.pwrite(bytes(view), offset))

    def read(self, view: memoryview, offset: int) -> None:
        view[:] = self._carried_out(lambda: self._client.pread(len(view), offset))

    def flush(self) -> None:
        self._carried_out(lambda: self._client.flush())
