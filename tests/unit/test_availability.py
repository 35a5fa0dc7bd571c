"""What keeps one from stopping all: unread logs, a stuck loop, names, repeated refusals."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given

from sealsvc.core.errors import Refusal
from sealsvc.core.model import FileId, Operation
from sealsvc.enforce.base import Outcome, Report
from sealsvc.lifecycle.recall import Repeats
from sealsvc.protocol import codec
from sealsvc.protocol.messages import encode
from sealsvc.protocol.seals import Grant, List
from sealsvc.runtime import closing
from sealsvc.runtime.config import LimitsSection
from sealsvc.runtime.journald import Journal
from sealsvc.runtime.limits import RateLimit
from sealsvc.runtime.log_queue import QueueHandler
from sealsvc.runtime.loop_watch import LoopWatch
from sealsvc.runtime.users import Received, Users
from tests.support.waiting import PATIENCE, until

# Logs


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("sealsvc", logging.INFO, "", 0, text, (), None)


def test_a_journal_that_is_not_read_delays_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stuck:
        stuck.bind(path)
        journal = Journal(path=path)
        handler = QueueHandler(journal.encode, journal.write)
        for number in range(2000):
            handler.emit(record(f"{number} " + "x" * 2000))
        assert 0 < handler.dropped < 2000
        logging.getLogger("sealsvc.runtime.log_queue").addHandler(handler)
        try:  # it is read again: nothing is lost silently
            stuck.settimeout(PATIENCE)
            while b"log records were dropped" not in stuck.recv(1 << 16):
                pass
        finally:
            logging.getLogger("sealsvc.runtime.log_queue").removeHandler(handler)


def test_a_full_pipe_delays_nobody() -> None:
    ours, theirs = os.pipe()
    handler = QueueHandler(
        lambda found: found.getMessage().encode(), lambda data: _write_all(theirs, data)
    )
    for _ in range(100):
        handler.emit(record("y" * 20000))
    handler.flush(0.1)
    assert handler.dropped > 0
    assert handler._size > 0
    os.set_blocking(ours, False)
    while handler._size:  # what was queued is written once it is read
        with suppress(BlockingIOError):
            os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def test_a_record_that_cannot_be_encoded_is_counted() -> None:
    def fails(_: logging.LogRecord) -> bytes:
        raise RuntimeError

    handler = QueueHandler(fails, lambda _: None)
    handler.emit(record("text"))
    assert handler.dropped == 1


# The loop


def test_a_stuck_loop_is_told_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    lags: list[float] = []
    alarms: list[str] = []

    async def main() -> None:
        watch = asyncio.ensure_future(LoopWatch(lags.append, alarms.append).run())
        while not lags:
            await asyncio.sleep(0.01)
        stand_still()
        while not alarms:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        watch.cancel()

    def stand_still() -> None:
        # On a slow machine it takes the watching thread longer.
        until(lambda: "stand_still" in caplog.text)
        time.sleep(0.5)

    asyncio.run(main())
    assert max(lags) > 1
    assert len(alarms) == sum(lag >= 1 for lag in lags), "one of each time"
    assert "the event loop is stuck for" in caplog.text


# Names


@given(st.binary(max_size=40))
def test_any_name_has_one_spelling(name: bytes) -> None:
    text = os.fsdecode(name)
    spelled = codec.to_wire(text)
    assert spelled.encode().decode() == spelled, "it can be encoded"
    assert os.fsencode(codec.from_wire(spelled)) == name


def test_only_names_are_respelled() -> None:
    data = encode(List(id=1, path="/a\U0010ffff", tag="\U0010ffff"))
    found = codec.request(data)
    assert isinstance(found, List)
    assert (found.path, found.tag) == ("/a\udcff", "\U0010ffff")
    assert codec.encoded(found) == data


@pytest.mark.parametrize(
    ("tail", "refused"),
    [
        (b'"tag":"a\\u0000"', Refusal),
        # Of the message's own type: the connection answers bad-request for it, too.
        (b'"pid":9223372036854775808', msgspec.ValidationError),
    ],
)
def test_what_nothing_can_store_is_refused(tail: bytes, refused: type[Exception]) -> None:
    with pytest.raises(refused):
        codec.request(b'{"op":"list","id":1,' + tail + b"}")


def test_an_escaped_backslash_is_no_nul() -> None:
    found = codec.request(rb'{"op":"list","id":1,"tag":"\\u0000"}')
    assert isinstance(found, List)
    assert found.tag == r"\u0000"


# Limits


def test_a_full_table_of_rates_forgets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealsvc.runtime.limits._MOST", 100)
    limit = RateLimit(rate=0.001, burst=1)
    for user in range(100):
        limit.take((user, ""))
    limit.take((100, ""))  # the one that waited longest is forgotten, and no other
    for user in range(1, 101):
        with pytest.raises(Refusal):
            limit.take((user, ""))
    limit.take((0, ""))


def test_descriptors_count_until_they_are_closed() -> None:
    async def main() -> None:
        users = Users(LimitsSection(descriptors_per_user=2), lambda _: False, alarms.append)
        user = users.of(1000)
        blocked, goes_on = threading.Event(), threading.Event()

        def stuck() -> None:
            blocked.set()
            goes_on.wait(PATIENCE)

        # Both threads of the user are stuck: what it sends stays open.
        for _ in range(2):
            closing.call_later(("user", 1000), stuck)
        blocked.wait(PATIENCE)
        received = Received([os.open("/dev/null", os.O_RDONLY) for _ in range(3)], user, users)
        received.close()
        assert user.descriptors == 3
        with pytest.raises(Refusal, match="limit-reached"):
            users.refuse_more_descriptors(user)
        users.refuse_more_descriptors(users.of(1001))  # others have their own
        goes_on.set()
        while user.descriptors:
            await asyncio.sleep(0.01)
        users.refuse_more_descriptors(user)

    alarms: list[str] = []
    asyncio.run(main())
    assert len(alarms) == 1


def test_repeated_refusals_are_one_event() -> None:
    def report(pid: int, name: str = "truncate") -> Report:
        operation = Operation(name=name, offset=0, length=0, pid=pid)
        return Report(Outcome.REFUSED, 0, FileId(1, 2), operation, (7,), 26, 0.0)

    repeats = Repeats()
    assert [repeats.is_first(report(1)) for _ in range(5)] == [True] + [False] * 4
    assert repeats.is_first(report(2))
    assert repeats.is_first(report(1, "unlink"))
    [(first, count)] = repeats.take()
    assert (first.operation.pid, count) == (1, 4)
    assert repeats.take() == []
    assert sum(repeats.is_first(report(pid)) for pid in range(1000)) <= 257
    assert sum(count for _, count in repeats.take()) >= 743


def test_a_grant_of_the_journal_has_its_name_again() -> None:
    grant = Grant(id=1, path="/a\udcfe")
    data = codec.encoded(grant, msgspec.msgpack.encode)
    assert codec.decoded(msgspec.msgpack.decode(data, type=Grant), data) == grant
