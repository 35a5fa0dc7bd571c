"""What a return takes for a proof that nothing is left: of whom, by which description, and what it
does when a process does not let itself be looked at."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Requirements
from sealsvc.protocol.seals import Mapped, Return
from tests.support.refusals import refusal
from tests.support.stuck_process import stuck

pytestmark = pytest.mark.kernel
BLOCK = 4096
HALF, WHOLE = 1 << 17, 1 << 18

# Inherits the descriptor argv[2], maps argv[3] bytes by it, and seals argv[4]:argv[5] by another.
CHILD = """
import mmap, os, sys
from sealsvc.client import Client
path, fd, length, offset, sealed = sys.argv[2], *map(int, sys.argv[3:])
mapping = mmap.mmap(fd, length)
os.close(fd)
with Client(sys.argv[1]) as client:
    if sealed:
        client.grant(fds=[os.open(path, os.O_RDWR)], kind="shared", offset=offset, length=sealed)
    print(flush=True)
    sys.stdin.read()
"""


@contextmanager
def child(
    socket: str, file: Path, fd: int, length: int, offset: int, sealed: int
) -> Iterator[None]:
    arguments = [socket, file, fd, length, offset, sealed]
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[fd],
    )
    assert process.stdout
    try:
        assert process.stdout.readline(), "the child failed"
        yield
    finally:
        process.communicate(b"", timeout=60)


@pytest.mark.parametrize(
    ("offset", "sealed"),
    [(0, 0), (HALF - BLOCK, 2 * BLOCK), (0, BLOCK), (BLOCK, HALF - BLOCK)],
    ids=["nothing", "its last block", "its first block", "all but its first block"],
)
def test_a_childs_mapping_counts_where_it_has_sealed_nothing(
    socket: str, client: Client, file: Path, offset: int, sealed: int
) -> None:
    """Its own seals keep their ranges alone: the rest of what it maps is the parent's."""
    reply = client.grant(path=str(file), kind="shared", offset=0, length=HALF)
    with child(socket, file, reply.fds[0], HALF, offset, sealed):
        refused = refusal(lambda: client.call(Return, seal=reply.seal.id))
        assert refused.code == "still-mapped"
    assert client.call(Return, seal=reply.seal.id).seal.state == "returned"
    os.close(reply.fds[0])


def test_a_childs_mapping_of_what_it_has_sealed_is_kept_by_its_own_seal(
    socket: str, client: Client, file: Path
) -> None:
    reply = client.grant(path=str(file), kind="shared", offset=0, length=HALF)
    with child(socket, file, reply.fds[0], HALF, 0, WHOLE):
        assert client.call(Return, seal=reply.seal.id).seal.state == "returned"
    os.close(reply.fds[0])


def test_of_two_overlapping_seals_each_keeps_its_own(client: Client, file: Path) -> None:
    first = client.grant(path=str(file), kind="shared", offset=0, length=HALF)
    second = client.grant(path=str(file), kind="shared", offset=BLOCK, length=WHOLE - BLOCK)
    whole = mmap.mmap(first.fds[0], WHOLE)
    assert refusal(lambda: client.call(Return, seal=first.seal.id)).code == "still-mapped"
    mapped_by_second = mmap.mmap(second.fds[0], HALF, offset=BLOCK)
    whole.close()
    assert client.call(Return, seal=first.seal.id).seal.state == "returned"
    assert refusal(lambda: client.call(Return, seal=second.seal.id)).code == "still-mapped"
    mapped_by_second.close()
    assert client.call(Return, seal=second.seal.id).seal.state == "returned"
    for fd in *first.fds, *second.fds:
        os.close(fd)


def give_back(client: Client, seal: str, outcomes: list[str]) -> None:
    try:
        outcomes.append(client.call(Return, seal=seal).seal.state)
    except Refusal as refused:
        outcomes.append(refused.code)


def test_two_seals_of_one_range_do_not_explain_each_other_away(socket: str, file: Path) -> None:
    """Both are returned at the same time, while the range is mapped: one must stay."""
    with Client(socket) as one, Client(socket) as other:
        for _ in range(20):
            replies = [c.grant(path=str(file), kind="shared") for c in (one, other)]
            mapping = mmap.mmap(replies[0].fds[0], 0)
            outcomes = list[str]()

            threads = [
                threading.Thread(target=give_back, args=(client, reply.seal.id, outcomes))
                for client, reply in zip((one, other), replies, strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(outcomes) in (["returned", "still-mapped"], ["still-mapped"] * 2)
            mapping.close()
            for client, reply in zip((one, other), replies, strict=True):
                for fd in reply.fds:
                    os.close(fd)
                give_back(client, reply.seal.id, outcomes)
            assert set(outcomes[2:]) <= {"returned", "no-such-seal"}


def test_record_locks_of_the_whole_file_go_together_with_seals(client: Client, file: Path) -> None:
    """Of others before the grant and after it, and of the holder."""
    code = "import fcntl, os, sys; fd = os.open(sys.argv[1], os.O_RDWR);"
    code += "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB); print(flush=True); sys.stdin.read()"

    @contextmanager
    def locked() -> Iterator[None]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout
        assert process.stdout.readline(), "no lock"
        yield
        process.communicate(b"", timeout=60)

    with locked():
        reply = client.grant(path=str(file), kind="shared")
    with locked():
        pass
    fcntl.lockf(reply.fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(reply.fds[0])
    assert client.call(Return, seal=reply.seal.id).seal.state == "returned"


def test_a_holder_that_cannot_be_looked_at_keeps_nobody_waiting(
    socket: str, client: Client, file: Path
) -> None:
    """The holder's mmap_lock is held for ever: its validations get an answer all the same, and the
    next one is refused without a look."""
    mine = client.grant(path=str(file), kind="shared", require=Requirements(populate=True))
    mapping = mmap.mmap(mine.fds[0], 0)
    mapping[::BLOCK]
    with stuck(file) as pid, Client(socket) as other:
        stuck_seal = other.grant(
            path=str(file),
            kind="shared",
            offset=0,
            length=BLOCK,
            holder={"pid": pid},
            require=Requirements(populate=True),
        )
        # One after the other, for seconds each, they would take longer than the client waits.
        for _ in range(200):
            other.send(Mapped, seal=stuck_seal.seal.id)
        assert client.call(Mapped, seal=mine.seal.id).result.pages == file.stat().st_size // BLOCK
        mapping.close()
        os.close(mine.fds[0])
        assert client.call(Return, seal=mine.seal.id).seal.state == "returned"
        with Client(socket) as third:
            refused = refusal(lambda: third.call(Mapped, seal=stuck_seal.seal.id))
            assert refused.code == "try-later"
            assert str(pid) in refused.message
