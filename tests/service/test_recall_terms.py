"""The manners of a recall: parts, progress, the forgetful, the many-handed, those that repeat."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.protocol.seals import (
    Forgotten,
    Grant,
    List,
    Recall,
    RecallAny,
    RecallProgress,
    RecallSeals,
    Renew,
    Return,
    Show,
)
from tests.service.scripted import scripted
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

UNIT = 65536


@contextmanager
def punching(file: Path, offset: int, length: int = 4096) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["fallocate", "-p", "-o", str(offset), "-l", str(length), file], stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def held(client: Client, file: Path, **fields: object) -> str:
    """A seal of our own whose descriptor is closed: nothing stands against its return."""
    reply = client.grant(path=str(file), **{"kind": "shared", "grace": 200, **fields})
    os.close(reply.fds[0])
    return reply.seal.id


def told(client: Client, kind: type = Recall) -> Recall:
    push = next(iter(client.pushes(PATIENCE)))
    assert isinstance(push, kind), push
    return push  # type: ignore[return-value]


def test_a_recall_says_who_wants_which_part(socket: str, client: Client, file: Path) -> None:
    seal = held(client, file, tag="region 7")
    with punching(file, 3 * UNIT, UNIT) as intruder:
        recall = told(client)
        assert (recall.seal, recall.tag, recall.changed) == (seal, "region 7", False)
        assert recall.wanted == ByteRange(3 * UNIT, UNIT)
        assert recall.range == ByteRange(0, file.stat().st_size)
        assert recall.operation is not None
        assert (recall.operation.pid, recall.operation.comm) == (intruder.pid, "fallocate")
        assert recall.operation.uid == os.getuid()
        client.call(Return, seal=seal)
        assert intruder.wait(PATIENCE) == 0


def test_a_part_is_returned_and_the_rest_stays_sealed(
    socket: str, client: Client, file: Path
) -> None:
    with scripted(socket, file, offset=0, length=8 * UNIT, grace=200) as holder:
        holder.map()
        with punching(file, 6 * UNIT, UNIT) as intruder:
            until(lambda: client.call(Show, seal=holder.seal).seal.state == "recalled")
            assert holder.give_back(ByteRange(6 * UNIT, 2 * UNIT)) == "still-mapped"
            assert intruder.poll() is None
            holder.do("mapping.close(); mapping = mmap.mmap(fd, 6 * 65536)")
            assert holder.give_back(ByteRange(6 * UNIT, 2 * UNIT)) == "granted"
            assert intruder.wait(PATIENCE) == 0
        left = client.call(Show, seal=holder.seal).seal
        assert (left.range, left.wanted) == (ByteRange(0, 6 * UNIT), None)
        with punching(file, 5 * UNIT) as intruder:
            until(lambda: client.call(Show, seal=holder.seal).seal.state == "recalled")
            time.sleep(0.2)
            assert intruder.poll() is None
            holder.let_go()
            assert holder.give_back() == "returned"
            assert intruder.wait(PATIENCE) == 0


def test_a_block_that_a_part_shares_with_the_rest_stays_sealed(client: Client, file: Path) -> None:
    seal = held(client, file, offset=0, length=2 * UNIT, conflict="refuse")
    left = client.call(Return, seal=seal, range=ByteRange(UNIT + 100, UNIT - 100)).seal
    assert left.range == ByteRange(0, UNIT + 100)
    assert left.effective == ByteRange(0, UNIT + 4096)
    with punching(file, UNIT) as intruder:
        assert intruder.wait(PATIENCE) != 0
    with punching(file, UNIT + 4096) as intruder:
        assert intruder.wait(PATIENCE) == 0
    client.call(Return, seal=seal)


def test_a_part_in_the_middle_is_refused(client: Client, file: Path) -> None:
    seal = held(client, file)
    for offset, length in ((UNIT, UNIT), (0, 1 << 40), (1 << 40, 1)):
        part = ByteRange(offset, length)
        assert refusal(lambda p=part: client.call(Return, seal=seal, range=p)).code == "bad-request"
    assert client.call(Show, seal=seal).seal.seqid == 1
    client.call(Return, seal=seal)


def test_a_seal_is_downgraded_once_nothing_is_mapped_writably(socket: str, file: Path) -> None:
    with scripted(socket, file, offset=0, length=4 * UNIT) as holder:
        holder.map()
        assert holder.do("client.call(Downgrade, seal=seal)") == "still-mapped"
        holder.do("mapping.close(); mapping = mmap.mmap(fd, length, prot=mmap.PROT_READ)")
        assert holder.do("client.call(Downgrade, seal=seal).seal.iomode") == "read"


def test_progress_moves_the_deadline_up_to_a_cap(client: Client, file: Path) -> None:
    seal = held(client, file, grace=2.0)
    assert refusal(lambda: client.call(RecallProgress, seal=seal)).code == "bad-request"
    client.call(RecallSeals, seal=seal, grace=0.5)
    before = client.call(Show, seal=seal).seal.deadline_in or 0
    after = client.call(RecallProgress, seal=seal).seal.deadline_in or 0
    assert before <= 0.5 < 1.0 < after <= 2.0
    client.call(Return, seal=seal)


def test_several_recalls_are_one(client: Client, file: Path) -> None:
    seal = held(client, file)
    part = ByteRange(UNIT, UNIT)
    client.call(RecallSeals, path=str(file), range=part)
    assert told(client).wanted == part
    first = client.call(Show, seal=seal).seal
    client.call(RecallSeals, path=str(file), range=part)  # nothing new: nobody is told again
    client.call(RecallSeals, path=str(file), range=ByteRange(3 * UNIT, UNIT), grace=5.0)
    again = told(client)
    assert again.wanted == ByteRange(UNIT, 3 * UNIT)
    assert again.grace <= 5.0
    assert client.call(Show, seal=seal).seal.seqid == first.seqid
    assert list(client.pushes(0.1)) == []
    client.call(Return, seal=seal)


def test_a_forgetful_holder_counts_as_returned_once_nothing_is_mapped(
    socket: str, client: Client, file: Path
) -> None:
    with scripted(socket, file, offset=0, length=UNIT, grace=200) as holder:
        holder.map()
        client.call(RecallSeals, seal=holder.seal)
        assert client.call(Forgotten, seal=holder.seal).seal.state == "recalled"
        holder.let_go()
        until(lambda: client.call(Show, seal=holder.seal).seal.state == "returned")


def test_a_holder_of_many_chooses_which_to_give_back(
    socket: str, client: Client, file: Path
) -> None:
    seals = [held(client, file, offset=n * UNIT, length=UNIT) for n in range(5)]
    with Client(socket) as operator:
        operator.call(RecallSeals, pid=os.getpid(), any=2, grace=5.0, reason="pressure")
        push = next(iter(client.pushes(PATIENCE)))
        assert isinstance(push, RecallAny)
        assert (push.pid, push.count, push.reason) == (os.getpid(), 2, "pressure")
        client.call(Return, seal=seals[4])
        # One is owed still: the oldest is chosen for us.
        recall = told(client)
        assert recall.seal == seals[0]
        assert list(client.pushes(0.3)) == []
    for seal in seals[:4]:
        client.call(Return, seal=seal)


def test_conflicts_with_an_orphan_do_not_wait_for_ever(
    socket: str, client: Client, file: Path
) -> None:
    with scripted(socket, file, offset=0, length=UNIT, grace=0.3) as holder:
        child = holder.leave_a_child()
        holder.kill()
        try:
            with punching(file, 0) as intruder:
                assert intruder.wait(PATIENCE) != 0
            assert client.call(Show, seal=holder.seal).seal.state == "orphaned"
        finally:
            os.kill(child, 9)
    until(lambda: client.call(Show, seal=holder.seal).seal.state == "returned")


def test_a_renewed_seal_lives_on(client: Client, file: Path) -> None:
    seal = held(client, file, ttl=0.3)
    until(lambda: client.call(Show, seal=seal).seal.state == "courtesy")
    renewed = client.call(Renew, seal=seal, ttl=60).seal
    assert renewed.state == "granted"
    assert (renewed.expires_in or 0) > 50
    assert client.call(Renew, seal=seal, ttl=0).seal.expires_in is None
    client.call(Return, seal=seal)


def test_a_seal_in_courtesy_stands_in_nobodys_way(client: Client, file: Path) -> None:
    seal = held(client, file, ttl=0.2)
    until(lambda: client.call(Show, seal=seal).seal.state == "courtesy")
    other = held(client, file, kind="exclusive")
    assert client.call(Show, seal=seal).seal.state == "expired"
    client.call(Return, seal=other)


def test_stale_seqids_are_refused(client: Client, file: Path) -> None:
    seal = held(client, file)
    for request in (Return, Renew, RecallSeals):
        stale = refusal(lambda r=request: client.call(r, seal=seal, seqid=7))
        assert (stale.code, stale.details) == ("stale-seqid", {"seqid": 1})
    client.call(RecallSeals, seal=seal, seqid=1)
    client.call(Return, seal=seal, seqid=2)


def test_a_seqid_is_of_one_seal(client: Client, file: Path) -> None:
    seal = held(client, file)
    wide = refusal(lambda: client.call(RecallSeals, path=str(file), seqid=1))
    assert (wide.code, "seqid" in wide.message) == ("bad-request", True)
    assert client.call(Show, seal=seal).seal.state == "granted"
    client.call(Return, seal=seal)


# Requests that are sent twice


def test_a_grant_that_is_repeated_with_its_key_is_the_same_seal(
    socket: str, client: Client, file: Path
) -> None:
    first = client.grant(path=str(file), kind="shared", key="k1")
    second = client.grant(path=str(file), kind="shared", key="k1")
    assert (second.seal.id, second.fds) == (first.seal.id, ())
    os.close(first.fds[0])
    # The descriptor was lost on the way: another comes, and it is the one that counts.
    third = client.grant(path=str(file), kind="shared", key="k1")
    assert third.seal.id == first.seal.id
    assert os.fstat(third.fds[0]).st_ino == file.stat().st_ino
    wrong = refusal(lambda: client.grant(path=str(file), kind="exclusive", key="k1"))
    assert wrong.code == "bad-request"
    os.close(third.fds[0])
    assert client.call(Return, seal=first.seal.id, key="r1").seal.state == "returned"
    assert client.call(Return, seal=first.seal.id, key="r1").seal.state == "returned"
    assert client.grant(path=str(file), kind="shared", key="k1").seal.state == "returned"
    assert refusal(lambda: client.call(Return, seal=first.seal.id)).code == "no-such-seal"


def test_a_refused_request_may_be_tried_again_with_its_key(client: Client, file: Path) -> None:
    key = {"kind": "shared", "key": "k2", "offset": 0, "length": 2 << 20}
    assert refusal(lambda: client.grant(path=str(file), **key)).code == "beyond-eof"
    with file.open("ab") as grown:
        grown.write(os.urandom(2 << 20))
        os.fsync(grown.fileno())
    reply = client.grant(path=str(file), **key)
    os.close(reply.fds[0])
    client.call(Return, seal=reply.seal.id)


def test_a_key_that_is_in_flight_is_put_off(client: Client, file: Path) -> None:
    # The first may be through before the second comes: then it is tried again.
    assert any(_are_put_off(client, file, f"k3 {attempt}") for attempt in range(50))
    assert client.call(List).result.seals == []


def _are_put_off(client: Client, file: Path, key: str) -> bool:
    """Of eight requests with one key; those that are not are answered with one seal."""
    fields = {"path": str(file), "kind": "shared", "key": key}
    ids = {client.send(Grant, **fields) for _ in range(8)}
    seals, later = set(), 0
    for _ in ids:
        message, fds = client._next(time.monotonic() + PATIENCE)
        for fd in fds:
            os.close(fd)
        if getattr(message, "code", "") == "try-later":
            later += 1
        else:
            seals.add(message.result.id)  # type: ignore[union-attr]
    assert len(seals) == 1
    client.call(Return, seal=seals.pop())
    return later > 0


def test_keys_of_grants_outlive_the_service(xfs: Path, tmp_path: Path) -> None:
    file = xfs / "keyed"
    file.write_bytes(os.urandom(1 << 20))
    running = Running(tmp_path, [xfs], RISKS)
    running.start()
    running.ready()
    try:
        with Client(str(running.socket), timeout=PATIENCE) as client:
            first = client.grant(path=str(file), kind="shared", key="k")
            running.kill()
            running.start()
            client.reconnect(PATIENCE)
            again = client.grant(path=str(file), kind="shared", key="k")
            assert (again.seal.id, again.fds) == (first.seal.id, ())
            os.close(first.fds[0])
            client.call(Return, seal=first.seal.id)
    finally:
        running.end()
        file.unlink()


def test_recalls_go_by_deadline_not_by_the_last_word(client: Client, file: Path) -> None:
    """A deadline that has passed with fence none refuses; progress has it wait again."""
    seal = held(client, file)
    client.call(RecallSeals, seal=seal, grace=0.2)
    with punching(file, 0) as intruder:
        assert intruder.wait(PATIENCE) != 0
    assert [s.step for s in client.call(Show, seal=seal).seal.ladder] == ["notify", "overdue"]
    client.call(RecallProgress, seal=seal)
    with punching(file, 0) as intruder:
        time.sleep(0.05)
        waited = intruder.poll() is None
        client.call(Return, seal=seal)
        assert intruder.wait(PATIENCE) == 0
    assert waited
    with pytest.raises(Refusal):
        client.call(Return, seal=seal)


def test_the_commands_for_it(socket: str, client: Client, file: Path) -> None:
    """sealctl renew, downgrade, return, recall --any, show: against the real service."""

    def sealctl(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "sealsvc.cli.sealctl", *arguments, "--socket", socket],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    seal = held(client, file, ttl=60)
    assert "granted" in sealctl("renew", seal, "--ttl", "2h")
    assert (client.call(Show, seal=seal).seal.expires_in or 0) > 7000
    sealctl("downgrade", seal)
    assert client.call(Show, seal=seal).seal.iomode == "read"
    sealctl("return", seal, "--range", "512K:512K")
    assert client.call(Show, seal=seal).seal.range == ByteRange(0, 8 * UNIT)
    sealctl("recall", "--pid", str(os.getpid()), "--any", "1", "--grace", "1ms")
    until(lambda: client.call(Show, seal=seal).seal.state == "recalled")
    shown = sealctl("show", seal)
    assert "ladder" in shown
    assert "notify" in shown
    assert "returned" in sealctl("return", seal)
