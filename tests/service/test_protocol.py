"""What a broken or hostile client can do to the control socket: nothing to anybody else."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket as sockets
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.base import MAX_MESSAGE
from sealsvc.protocol.seals import Grant, Return
from sealsvc.protocol.system import ServiceStatus, Status
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


def exchange(socket: str, data: bytes, fds: tuple[int, ...] = ()) -> dict[str, Any]:
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(socket)
        rights = [(sockets.SOL_SOCKET, sockets.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sock.sendmsg([data], rights)
        answer: dict[str, Any] = json.loads(sock.recv(MAX_MESSAGE))
        return answer


@pytest.mark.parametrize(
    ("data", "code", "mentions"),
    [
        (b"not json", "bad-request", "JSON"),
        (b"[]", "bad-request", "object"),
        (b'{"op":"grant","id":1,"pth":"/x"}', "bad-request", "pth"),
        (b'{"op":"grant","id":1,"offset":-1,"path":"/x"}', "bad-request", "$.offset"),
        (b'{"op":"grant","id":"a"}', "bad-request", "$.id"),
        (b'{"op":"fly","id":7}', "unknown-operation", "fly"),
        (b'{"op":"status","id":7,"v":9}', "unsupported-version", "1"),
        (b"{" * 60000, "bad-request", ""),
        (b" " * (MAX_MESSAGE + 1), "too-large", str(MAX_MESSAGE)),
        (b'{"op":"show","id":3,"seal":"000000000000000000000000"}', "no-such-seal", "0000"),
        (b'{"op":"grant","id":3}', "bad-request", "descriptor"),
        (b'{"op":"grant","id":3,"path":"relative"}', "bad-request", "absolute"),
        (b'{"op":"grant","id":3,"path":"/etc/passwd"}', "outside-roots", "/etc/passwd"),
        (b'{"op":"grant","id":3,"path":"/x","holder":{"pidfd":true}}', "bad-request", "pidfd"),
    ],
)
def test_malformed_requests_get_an_error_that_names_the_fault(
    socket: str, data: bytes, code: str, mentions: str
) -> None:
    answer = exchange(socket, data)
    assert answer["reply"] == "failure"
    assert answer["code"] == code, answer
    assert mentions in answer["message"], answer


def test_the_id_comes_back_where_it_could_be_read(socket: str) -> None:
    assert exchange(socket, b'{"op":"fly","id":7}')["id"] == 7
    assert exchange(socket, b"nonsense")["id"] is None


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.binary(min_size=1, max_size=300))
def test_noise_is_answered_and_hurts_nobody(socket: str, noise: bytes) -> None:
    assert exchange(socket, noise)["reply"] == "failure"


def test_too_many_descriptors_are_refused(socket: str) -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    try:
        answer = exchange(socket, b'{"op":"grant","id":1}', (fd, fd, fd, fd))
    finally:
        os.close(fd)
    assert answer["code"] == "too-large"


def test_descriptors_of_refused_requests_do_not_pile_up(socket: str, client: Client) -> None:
    status = client.call(Status).result
    assert isinstance(status, ServiceStatus)
    table = f"/proc/{status.pid}/fd"
    before = len(os.listdir(table))
    for _ in range(50):
        with pytest.raises(Refusal), open("/dev/null", "rb") as file:
            client.grant(fds=[file.fileno()])
    until(lambda: len(os.listdir(table)) <= before + 2)


def test_symbolic_links_and_escapes_are_refused(client: Client, file: Path, root: Path) -> None:
    link = root / "link"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(file)
    for path in (link, root / ".." / "etc" / "passwd"):
        with pytest.raises(Refusal) as caught:
            client.grant(path=str(path))
        assert caught.value.code == "outside-roots"
    link.unlink()


@pytest.mark.parametrize("length", [0, 2 << 20])
def test_ranges_outside_the_file_are_refused(client: Client, file: Path, length: int) -> None:
    with pytest.raises(Refusal) as caught:
        client.grant(path=str(file), offset=file.stat().st_size - 4096, length=length or 8192)
    assert caught.value.code == "beyond-eof"


def test_unsuitable_extents_are_named(client: Client, root: Path, file: Path) -> None:
    sparse = root / "sparse"
    with sparse.open("wb") as made:
        made.truncate(1 << 20)
    with pytest.raises(Refusal) as caught:
        client.grant(path=str(sparse))
    assert caught.value.code == "extent-unsuitable"
    assert caught.value.details["extents"][0]["flag"] == "hole"
    reply = client.grant(path=str(sparse), prepare=["allocate", "convert"])
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)
    assert sparse.read_bytes() == bytes(1 << 20)
    sparse.unlink()


def test_a_thousand_holders_at_once(socket: str, file: Path) -> None:
    clients = [Client(socket, timeout=PATIENCE) for _ in range(1000)]
    seals = []
    try:
        for one in clients:
            one.send(Grant, path=str(file), kind="shared", offset=0, length=4096)
        for one in clients:
            message, fds = one._next(None)
            assert getattr(message, "reply", "") != "failure", message
            os.close(fds[0])
            seals.append(message.result.id)  # type: ignore[union-attr]
        assert len(set(seals)) == 1000
        threads = [
            threading.Thread(target=lambda c=c, s=s: c.call(Return, seal=s))
            for c, s in zip(clients, seals, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    finally:
        for one in clients:
            one.close()
    with Client(socket) as client:
        status = client.call(Status).result
    assert isinstance(status, ServiceStatus)
    assert status.seals == {}


def test_a_refused_grant_allocates_nothing(client: Client, root: Path, file: Path) -> None:
    """Neither in the range nor outside of it: a sparse file stays sparse."""
    sparse = file.with_suffix(".sparse")
    with sparse.open("wb") as made:
        made.write(os.urandom(65536))
        made.truncate(64 << 20)
        os.fsync(made.fileno())
    before = sparse.stat().st_blocks
    with pytest.raises(Refusal):
        client.grant(path=str(sparse))
    reply = client.grant(path=str(sparse), offset=0, length=65536)
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)
    assert sparse.stat().st_blocks == before
    sparse.unlink()


def test_reflinked_files_are_refused_until_unshared(client: Client, root: Path, file: Path) -> None:
    if "xfs" not in str(root):
        pytest.skip("ext4 has no reflink")
    copy = file.with_suffix(".copy")
    subprocess.run(["cp", "--reflink=always", file, copy], check=True)
    with pytest.raises(Refusal) as caught:
        client.grant(path=str(file), kind="shared")
    assert caught.value.code == "extent-unsuitable"
    assert caught.value.details["extents"][0]["flag"] == "shared"
    reply = client.grant(path=str(file), kind="shared", prepare=["unshare"])
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)
    assert copy.read_bytes() == file.read_bytes()
    copy.unlink()
