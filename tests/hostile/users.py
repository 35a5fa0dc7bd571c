"""Unprivileged users, as processes of their own, and what they do to the control socket."""

from __future__ import annotations

import json
import os
import signal
import socket as sockets
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.waiting import PATIENCE

NOBODY = 65534


@contextmanager
def process(work: Callable[[], object], uid: int = NOBODY) -> Iterator[int]:
    """`work` in a child of user `uid`, killed when the context ends; its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            if uid:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def as_user(work: Callable[[], Any], uid: int = NOBODY) -> Any:
    """What `work` returns (JSON) when user `uid` does it."""
    ours, theirs = os.pipe()

    def told() -> None:
        os.write(theirs, json.dumps(work()).encode())

    with process(told, uid):
        os.close(theirs)
        with os.fdopen(ours, "rb") as answer:
            return json.loads(answer.read())


def connected(path: str) -> sockets.socket:
    made = sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET)
    made.settimeout(PATIENCE)
    made.connect(path)
    return made


def sent(sock: sockets.socket, data: bytes, fds: list[int] | None = None) -> None:
    sockets.send_fds(sock, [data], fds or [])


def answer(sock: sockets.socket) -> dict[str, Any]:
    """The next answer, pushes apart; empty when the connection was closed. One closed with a
    request unread says so first, by ECONNRESET, and then has what was sent before."""
    try:
        data = sock.recv(1 << 17)
    except ConnectionResetError:
        data = sock.recv(1 << 17)
    while data:
        message: dict[str, Any] = json.loads(data)
        if message["reply"] in ("answer", "failure"):
            return message
        data = sock.recv(1 << 17)
    return {}
