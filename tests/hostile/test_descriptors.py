"""Descriptors that others send: they never stop the service, and go when their sender goes."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.protocol.system import Status
from tests.hostile import fuse
from tests.hostile.users import answer, connected, process, sent
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


def descriptors(running: Running) -> int:
    assert running.process is not None
    return len(os.listdir(f"/proc/{running.process.pid}/fd"))


def answers(running: Running) -> bool:
    """Others, while what blocks a thread is still there."""
    with Client(str(running.socket), timeout=PATIENCE) as client:
        return bool(client.call(Status).result.pid)


def grant(**fields: Any) -> bytes:
    return json.dumps({"op": "grant", "id": 1, "kind": "shared", **fields}).encode()


def test_descriptors_go_with_their_sender(running: Running, file: Path) -> None:
    """Also when it goes before its request has begun."""
    before = descriptors(running)

    def flood() -> None:
        mine = os.open(file, os.O_RDWR)
        for _ in range(100):
            with connected(str(running.socket)) as sock:
                for number in range(8):
                    message = {"op": "status", "id": number}
                    sent(sock, json.dumps(message).encode(), [mine, mine])

    with process(flood) as pid:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    until(lambda: descriptors(running) <= before + 2, what="the descriptors' end")
    with Client(str(running.socket), timeout=PATIENCE) as client:
        reply = client.grant(path=str(file), kind="exclusive")
        os.close(reply.fds[0])


MESSAGES = {
    "no message": b"not even json",
    "a request without descriptors": b'{"op":"status","id":1}',
    "a grant": grant(),
    "a grant with a key": grant(key="k"),
    "a registration": grant(op="register", ring=0),
    "a holder's pidfd": grant(path="/none", holder={"pidfd": True}),
    "too many": b'{"op":"status","id":2}',
}


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[fuse.Server]:
    """A file whose close is never answered to others than this process."""
    with fuse.served(tmp_path / "fuse", fuse.FLUSH) as server:
        yield server


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_a_close_that_is_never_answered_stops_nobody(
    running: Running, silent: fuse.Server, message: bytes
) -> None:
    theirs = os.open(silent.file, os.O_RDWR)
    with connected(str(running.socket)) as sock:
        sent(sock, message, [theirs] * (5 if b'"id":2' in message else 1))
        os.close(theirs)
        if message.startswith(b"{"):
            assert answer(sock)["reply"] in ("answer", "failure")
        assert silent.met.wait(PATIENCE), "the service closes it"
        assert answers(running)


def test_what_is_unread_in_a_socket_stops_nobody(running: Running, silent: fuse.Server) -> None:
    """Descriptors in the queue of a connection that the service closes."""
    theirs = os.open(silent.file, os.O_RDWR)
    with connected(str(running.socket)) as sock:
        for _ in range(8):
            sent(sock, b"{", [theirs] * 2)
        os.close(theirs)
    silent.silent.add(fuse.RELEASE)
    assert answers(running)


def test_the_service_ends_and_the_next_begins_beside_a_stuck_thread(
    root: Path, tmp_path: Path, silent: fuse.Server, file: Path
) -> None:
    running = Running(tmp_path, [root], RISKS)
    running.start()
    try:
        running.ready()
        with Client(str(running.socket), timeout=PATIENCE) as client:
            reply = client.grant(path=str(file), kind="shared")
        theirs = os.open(silent.file, os.O_RDWR)
        with connected(str(running.socket)) as sock:
            sent(sock, b"{", [theirs])
            os.close(theirs)
            assert silent.met.wait(PATIENCE)
        before = running.process
        assert before is not None
        before.terminate()
        until(lambda: not running.socket.exists(), what="the orderly end")
        running.start()
        running.ready()
        assert answers(running)
        silent.end()  # the kernel can let go of the thread now
        assert before.wait(PATIENCE) == 0
        os.close(reply.fds[0])
    finally:
        silent.end()
        running.end()


def test_fdinfo_that_blocks_stops_nobody(running: Running, tmp_path: Path, file: Path) -> None:
    """The kernel shows an epoll descriptor under a lock that its owner holds for as long as it
    likes: epoll_wait into memory whose page is never there."""
    with fuse.served(tmp_path / "fuse") as server:
        fd = os.open(server.file, os.O_RDWR)
        memory = mmap.mmap(fd, fuse.SIZE, mmap.MAP_PRIVATE)
        os.close(fd)  # the mapping has its own reference
        server.silent.add(fuse.READ)
        ours, theirs = os.pipe()
        epoll = select.epoll()
        epoll.register(theirs, select.EPOLLOUT)
        address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
        wait = ctypes.CDLL(None).epoll_wait
        waiter = threading.Thread(target=wait, args=(epoll.fileno(), address, 1, 0))
        waiter.start()
        assert server.met.wait(PATIENCE)
        with connected(str(running.socket)) as sock:
            sent(sock, grant(id=1), [epoll.fileno()])
            sent(sock, grant(id=2, key="k"), [epoll.fileno()])
            sent(sock, grant(id=3, path=str(file), holder={"pidfd": True}), [epoll.fileno()])
            time.sleep(0.2)
            assert answers(running)
            codes = {answer(sock)["code"] for _ in range(3)}
            assert codes <= {"try-later", "bad-request"}
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    os.close(ours)
    os.close(theirs)
    epoll.close()
