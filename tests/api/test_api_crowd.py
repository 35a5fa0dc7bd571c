"""A hostile crowd at full size before the real service and API: 512 silent sockets, slow bodies and
256 greedy listeners. An operator is served within a second."""

from __future__ import annotations

import socket
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.api.running import Front, simulated

SILENT, SLOW, GREEDY = 512, 64, 256
SHARE = 64  # listeners of one principal
HEAD = "{} {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer viewer\r\n"
LISTEN = (HEAD.format("GET", "/v1/events") + "\r\n").encode()
SLOWLY = (HEAD.format("POST", "/v1/recalls") + "Content-Length: 40000\r\n\r\n{").encode()


def opened(there: Front, said: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", urlsplit(there.base).port or 0), timeout=20)
    if said:
        made.sendall(said)
    return made


def listens(stack: ExitStack, there: Front) -> bool:
    """Has the viewer one listener more?"""
    sock = stack.enter_context(opened(there, LISTEN))
    answer = sock.recv(4096)
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 429 ")), answer
    return b" 200 " in answer.splitlines()[0]


def serves(there: Front) -> float:
    """Seconds for a new connection and a request of an operator."""
    began = time.monotonic()
    bearer = {"Authorization": "Bearer operator"}
    with httpx.Client(base_url=there.base, headers=bearer, timeout=20) as http:
        assert http.get("/v1/status").status_code == 200
        answer = http.get("/v1/seals")
        assert answer.status_code == 200, answer.text
    return time.monotonic() - began


def test_an_operator_is_served_beside_a_crowd(tmp_path: Path) -> None:
    with simulated(tmp_path) as there, ExitStack() as stack:
        serves(there)
        heard = [listens(stack, there) for _ in range(GREEDY)]
        assert sum(heard) == SHARE
        for _ in range(SLOW):
            stack.enter_context(opened(there, SLOWLY))
        for _ in range(SILENT):
            stack.enter_context(opened(there))
        took = []
        for _ in range(9):
            took.append(serves(there))
            stack.enter_context(opened(there))  # who was turned out comes again
        assert statistics.median(took) < 1.0, took
        bearer = {"Authorization": "Bearer operator"}
        with (
            httpx.Client(base_url=there.base, headers=bearer, timeout=20) as http,
            http.stream("GET", "/v1/events") as answer,
        ):
            assert answer.status_code == 200, "listeners are kept for operators"
