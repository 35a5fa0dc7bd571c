"""What one user can use up: its own share, and nobody else's."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import Measures, MeasuresReport
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.seals import RecallProgress, RecallSeals, Show
from sealsvc.protocol.system import Status
from tests.hostile.users import NOBODY, answer, as_user, connected, process, sent
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def more() -> str:
    return (
        "max_reader_grace = 20.0\nmax_seals = 61\n"
        "[limits]\nconnections_per_user = 20\nrequests_per_user = 30\n"
    )


@pytest.fixture(autouse=True)
def _nobody_else(running: Running) -> None:
    """The connections of the test before count for their user until the service has closed them."""
    with Client(str(running.socket), timeout=PATIENCE) as client:
        until(lambda: client.status().connections == 1)


def counted(client: Client) -> dict[str, int]:
    measures = client.call(Measures).result
    assert isinstance(measures, MeasuresReport)
    return measures.counters["limits"]


def test_connections(running: Running) -> None:
    """Those beyond the limit are told so and closed; others are served; the operator is told."""

    def flood() -> dict[str, int]:
        socks, found = [], {"served": 0, "limit-reached": 0}
        for _ in range(40):
            sock = connected(str(running.socket))
            socks.append(sock)
            with suppress(BrokenPipeError):  # what was said before its end can still be read
                sock.send(b'{"op":"status","id":1}')
            got = answer(sock)
            found[got.get("code", "served")] += 1
        return found

    with Client(str(running.socket), timeout=PATIENCE) as client:
        client.call(Watch)
        assert as_user(flood) == {"served": 20, "limit-reached": 20}
        assert counted(client)["connections_per_user"] == 20
        events = [p for p in client.pushes(1) if isinstance(p, Event) and p.name == "alarm"]
        alarms = [event for event in events if f"user {NOBODY}" in event.data["reason"]]
        assert len(alarms) == 1, "one alarm, not one for each refusal"
        # They count until they are closed, and not longer.
        until(lambda: client.call(Status).result.connections == 1)
        assert as_user(flood) == {"served": 20, "limit-reached": 20}


def test_one_user_leaves_as_many_seals_as_it_has(running: Running, file: Path) -> None:
    """Of all that there may be: so that no user, and no number of users, takes the last."""
    path, (ours, theirs) = str(running.socket), os.pipe()

    def greedy() -> None:
        with Client(path, timeout=PATIENCE) as client:
            try:
                for at in range(0, 61 * 4096, 4096):
                    client.grant(fds=[opened.fileno()], kind="shared", offset=at, length=4096)
            except Refusal as refusal:
                os.write(theirs, f"{refusal.code} {refusal.details['limit']}".encode())
            time.sleep(600)

    def modest() -> str:
        with Client(path, timeout=PATIENCE) as client:
            reply = client.grant(fds=[opened.fileno()], kind="shared", offset=1 << 19)
            return str(reply.seal.state)

    with (
        file.open("r+b") as opened,
        Client(path, timeout=PATIENCE) as client,
        process(greedy),
    ):
        os.close(theirs)
        with os.fdopen(ours, "rb") as told:
            assert told.read(23) == b"limit-reached max_seals"
            assert client.status().seals == {"granted": 30}
            assert as_user(modest, NOBODY - 1) == "granted"
    with Client(path, timeout=PATIENCE) as client:
        until(lambda: not client.status().seals)


def test_the_python_client_says_which_limit(running: Running) -> None:
    def flood() -> list[str]:
        clients, said = [], set()
        for _ in range(25):
            client = Client(str(running.socket), timeout=PATIENCE)
            clients.append(client)
            try:
                client.call(Status)
            except Refusal as found:
                said.add(f"{found.code} {found.details['limit']}")
        return sorted(said)

    assert as_user(flood) == ["limit-reached connections_per_user"]


def test_requests_in_flight(running: Running, root: Path) -> None:
    """A user's requests that wait: here for the page of a file that a thread looks at."""

    def flood() -> dict[str, int]:
        found: dict[str, int] = {}
        sock = connected(str(running.socket))
        for number in range(60):
            message = {"op": "grant", "id": number, "holder": {"fd": 10**6}, "kind": "shared"}
            sent(sock, json.dumps(message).encode())
        for _ in range(60):
            code = answer(sock)["code"]
            found[code] = found.get(code, 0) + 1
        return found

    found = as_user(flood)
    assert found.keys() <= {"bad-request", "limit-reached"}
    assert sum(found.values()) == 60
    with Client(str(running.socket), timeout=PATIENCE) as client:
        until(lambda: client.call(Status).result.connections == 1)


def test_requests_wait_while_their_answers_are_not_read(running: Running) -> None:
    """Unread answers of a connection do not accumulate in the service."""
    assert running.process is not None
    with connected(str(running.socket)) as sock:
        sock.setblocking(False)
        count = 0
        stop = time.monotonic() + 3
        while time.monotonic() < stop and count < 5000:
            try:
                sock.send(b'{"op":"status","id":%d}' % count)
                count += 1
            except BlockingIOError:
                time.sleep(0.02)
        assert count < 1000, "requests are taken although no answer is read"
        sock.setblocking(True)
        assert {answer(sock)["id"] for _ in range(count)} == set(range(count))


# Readers


@contextmanager
def reading(running: Running, file: Path, **terms: Any) -> Iterator[Any]:
    """What nobody gets for a descriptor that cannot write, and goes on holding if it is a seal."""
    ours, theirs = os.pipe()
    descriptor = os.open(file, os.O_RDONLY)

    def work() -> None:
        with Client(str(running.socket), timeout=PATIENCE) as client:
            try:
                fields = {"kind": "shared", "iomode": "read", **terms}
                seal = client.grant(fds=[descriptor], **fields).seal
                told = [seal.id, seal.fence]
            except Refusal as refused:
                told = [refused.code]
            os.write(theirs, json.dumps(told).encode())
            time.sleep(600)

    try:
        with process(work):
            os.close(descriptor)
            yield json.loads(os.read(ours, 1000))
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("terms", [{"conflict": "refuse"}, {"grace": 25.0}])
def test_a_reader_refuses_nobody(running: Running, file: Path, terms: dict[str, Any]) -> None:
    with reading(running, file, **terms) as told:
        assert told == ["denied"]


def test_a_reader_that_stays_is_fenced(running: Running, file: Path) -> None:
    """Root's truncate waits for the grace, then for the fence that the reader did not ask for."""
    with reading(running, file, grace=1.0) as (seal, fence):
        assert fence == "kill"
        os.truncate(file, 4096)
        with Client(str(running.socket), timeout=PATIENCE) as client:
            ended = client.call(Show, seal=seal).seal
            assert ended.state in ("revoked", "returned", "orphaned")


def test_a_readers_progress_is_capped(running: Running, file: Path) -> None:
    with (
        reading(running, file, grace=19.5) as (seal, _),
        Client(str(running.socket), timeout=PATIENCE) as client,
    ):
        client.call(RecallSeals, seal=seal)
        time.sleep(1.0)
        client.call(RecallProgress, seal=seal)
        left = client.call(Show, seal=seal).seal.deadline_in
        assert left is not None
        assert left < 19.1, "20 s after the recall began, and not 19.5 s from now"
