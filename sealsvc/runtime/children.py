"""Processes of the service's own code, each with a socket to the service."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

_START = "import sys; sys.path[:] = {path!r}; from {module} import main; main({arguments})"

Started = Callable[[subprocess.Popen[bytes] | OSError, socket.socket], None]


def start(
    module: str, arguments: tuple[object, ...], kind: socket.SocketKind, started: Started
) -> None:
    """Call `main(FD, *arguments)` of a module in a new process, where FD is its end of a pair of
    sockets of this kind. `started` is called on the running event loop, with the process or why
    there is none, and our end, which does not block."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    ours.setblocking(False)
    given = ", ".join(map(repr, (theirs.fileno(), *arguments)))
    program = _START.format(path=sys.path, module=module, arguments=given)

    def make() -> None:
        """In a thread: it waits for the program to be read from its disk."""
        made: subprocess.Popen[bytes] | OSError
        try:
            with theirs:
                made = subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
        except OSError as error:
            made = error
        with suppress(RuntimeError):  # the loop is closed: nobody needs it any more
            loop.call_soon_threadsafe(started, made, ours)

    threading.Thread(target=make, name="child-start", daemon=True).start()


def end_of(status: int) -> str:
    """How a process ended, of what subprocess.Popen.wait() returns: "by SIGKILL"."""
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
