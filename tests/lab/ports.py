"""What the guest writes: the command's two streams and a line of control, on virtio-serial ports.

A port says nothing of its end, and what was written last may come last: so the guest ends each
stream with a mark, which is taken away here.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from pathlib import Path

NAMES = ("out", "err", "control")  # in the order in which they connect

Sink = Callable[[bytes], object]


class Stream:
    """What came on a port so far. `show` is given it as it comes, without the mark."""

    def __init__(self, mark: bytes, show: Sink | None = None) -> None:
        self._mark, self._show = mark, show
        self._data, self._shown = bytearray(), 0
        self.whole = False

    def feed(self, data: bytes) -> None:
        if self.whole:  # of a process that outlived the command
            return
        searched = max(0, len(self._data) - len(self._mark))
        self._data += data
        if (at := self._data.find(self._mark, searched)) >= 0:
            self.whole = True
            del self._data[at:]
        ripe = len(self._data) - (0 if self.whole else self._half_a_mark())
        if self._show and ripe > self._shown:
            self._show(bytes(self._data[self._shown : ripe]))
            self._shown = ripe

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    def _half_a_mark(self) -> int:
        """How much at the end may be the beginning of the mark."""
        lengths = range(len(self._mark) - 1, 0, -1)
        return next((n for n in lengths if self._data.endswith(self._mark[:n])), 0)


class Ports:
    """The host's ends. QEMU connects them to `path`."""

    def __init__(self, path: Path, mark: bytes, out: Sink | None, err: Sink | None) -> None:
        self.out, self.err, self._control = Stream(mark, out), Stream(mark, err), Stream(mark)
        self._streams = (self.out, self.err, self._control)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(len(NAMES))
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._connected = 0

    @property
    def ready(self) -> bool:
        return "ready\n" in self._control.text

    @property
    def status(self) -> int | None:
        """The command's, once everything that it wrote is here too."""
        if not all(stream.whole for stream in self._streams):
            return None
        return int(self._control.text.split()[-1])

    def read(self, seconds: float) -> bool:
        """Take in what comes within `seconds`. False when QEMU has closed the ports."""
        for key, _ in self._selector.select(max(0.0, seconds)):
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is self._listener:
                self._selector.register(
                    sock.accept()[0], selectors.EVENT_READ, self._streams[self._connected]
                )
                self._connected += 1
            elif data := sock.recv(1 << 16):
                key.data.feed(data)
            else:
                self._selector.unregister(sock)
                sock.close()
        return len(self._selector.get_map()) > 1 or not self._connected

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
