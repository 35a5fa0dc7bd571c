"""A hostile crowd before the API: silent sockets, slow bodies and greedy listeners."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import httpx

from tests.api.running import PATIENCE, Front

SILENT, SLOW, GREEDY = 512, 64, 256
SHARE = 64  # listeners of one principal
HEAD = "{} {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer viewer\r\n"
LISTEN = (HEAD.format("GET", "/v1/events") + "\r\n").encode()
SLOWLY = (HEAD.format("POST", "/v1/recalls") + "Content-Length: 40000\r\n\r\n{").encode()


def opened(there: Front, said: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", urlsplit(there.base).port or 0), PATIENCE)
    if said:
        made.sendall(said)
    return made


def listens(stack: ExitStack, there: Front) -> bool:
    """Has the viewer one listener more?"""
    sock = stack.enter_context(opened(there, LISTEN))
    answer = sock.recv(4096)
    assert answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 429 ")), answer
    return b" 200 " in answer.splitlines()[0]


def gather(stack: ExitStack, there: Front) -> int:
    """The whole crowd. Returns how many of its listeners are heard."""
    heard = sum(listens(stack, there) for _ in range(GREEDY))
    for _ in range(SLOW):
        stack.enter_context(opened(there, SLOWLY))
    for _ in range(SILENT):
        stack.enter_context(opened(there))
    return heard


def serves(there: Front) -> float:
    """Seconds for a new connection and two requests of an operator."""
    began = time.perf_counter()
    with there.http("operator") as http:
        for path in ("/v1/status", "/v1/seals"):
            answer = http.get(path)
            assert answer.status_code == 200, answer.text
    return time.perf_counter() - began


def hears(there: Front) -> bool:
    """Whether an operator gets a listener."""
    with there.http("operator") as http, http.stream("GET", "/v1/events") as answer:
        return answer.status_code == httpx.codes.OK
