"""A hostile crowd at full size before the real service and API: an operator is served beside it,
and not after it. How fast is measured by `python -m tests.bench.walls`."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

from tests.api.crowd import SHARE, SLOWLY, gather, hears, opened, serves
from tests.api.running import simulated

BODY_TIMEOUT = 20.0  # seconds (http_protocol.py)


def gone(sock: socket.socket) -> bool:
    """Whether the server has closed the connection."""
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_an_operator_is_served_beside_a_crowd(tmp_path: Path) -> None:
    with simulated(tmp_path) as there, ExitStack() as stack:
        serves(there)
        assert gather(stack, there) == SHARE
        began, last = time.monotonic(), stack.enter_context(opened(there, SLOWLY))
        for _ in range(9):
            serves(there)
            stack.enter_context(opened(there))  # who was turned out comes again
        assert hears(there), "listeners are kept for operators"
        # Who came last before the operator is still waiting: the crowd had not gone.
        assert not gone(last) or time.monotonic() - began > BODY_TIMEOUT
