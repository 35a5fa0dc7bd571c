"""The small parts behind the face: logs for the journal, claims, measures, the policy's file,
sockets that systemd passes."""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.paths import lies_below
from sealsvc.linux.processes import Peer
from sealsvc.protocol.admin import MeasuresReport
from sealsvc.protocol.events import Event
from sealsvc.protocol.seals import Conditions, IssueClaim
from sealsvc.protocol.system import Status
from sealsvc.runtime import config
from sealsvc.runtime.config import Config, ConfigError
from sealsvc.runtime.journald import Journal, LineFormatter, encoded
from sealsvc.service.metrics import BOUNDS, Metrics
from sealsvc.service.reload import PolicyFile
from sealsvc.service.tickets import MOST, Tickets
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
OPERATOR = Peer(pid=1, uid=0, gid=0)


def record(message: str, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("sealsvc.api", logging.WARNING, "", 0, message, (), None)
    made.fields = fields
    return made


def test_fields_reach_the_journal(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        journal_of = Journal(lambda: {"SEALSVC_REQUEST": "abc"}, path)
        journal_of.write(journal_of.encode(record("changed", SEALSVC_SEAL="65f0")))
        told = journal.recv(65536).split(b"\n")
        journal_of._sock.close()
    assert {b"MESSAGE=changed", b"PRIORITY=4", b"SEALSVC_REQUEST=abc", b"SEALSVC_SEAL=65f0"} <= {
        *told
    }


def test_a_value_of_several_lines_cannot_forge_a_field() -> None:
    told = encoded({"MESSAGE": "one\nPRIORITY=0"})
    assert told == b"MESSAGE\n" + struct.pack("<Q", 14) + b"one\nPRIORITY=0\n"


@pytest.mark.parametrize("name", ["a\nERROR sealsvc: forged", "\u202egpj.exe", "\x1b[2J", "\udcff"])
def test_a_name_cannot_forge_a_line_of_the_log(name: str) -> None:
    """Also where it is part of an exception, or shown by %r."""
    made = record("%s, %r, %s\n%.1f", SEALSVC_SEAL=f"{name} sealsvc_principal=root")
    made.args = (name, name, Refusal("no-such-file", f"{name} does not exist"), 1.0)
    text, journal = LineFormatter().format(made), Journal(path="")
    told = journal.encode(made)
    journal._sock.close()
    assert name not in text
    assert text.count("\n") == 1, "the format's own"
    assert '" sealsvc_principal' not in text
    assert 'sealsvc_seal="' in text
    assert all(line.isprintable() for line in text.split("\n"))
    message = told[told.index(b"MESSAGE\n") + 16 :].decode()
    assert (
        message.partition("\nPRIORITY")[0] == text.partition(" [sealsvc_seal")[0].partition(": ")[2]
    )
    bare = record(f"about {name}\n")
    assert LineFormatter().format(bare).partition(" [")[0].isprintable()


def test_without_a_journal_a_line_has_the_fields() -> None:
    text = LineFormatter().format(record("changed", SEALSVC_SEAL="65f0", SEALSVC_STATUS=""))
    assert text == "WARNING sealsvc.api: changed [sealsvc_seal=65f0]"


# Claims


def claim(tickets: Tickets, **terms: object) -> str:
    asker = (OPERATOR.uid, str(terms.get("principal", "")))
    request = IssueClaim(id=1, path="/pmem/a", **terms)  # type: ignore[arg-type]
    return tickets.issue(OPERATOR, asker, request).claim


def test_a_claim_is_a_secret_of_its_own_terms() -> None:
    tickets = Tickets()
    secret = claim(tickets, tag="mine", principal="alice", key="k")
    assert len(secret) >= 43
    with tickets.redeem(secret, Peer(2, 1000, 1000)) as issued:
        assert (issued.peer, issued.grant.tag, issued.grant.principal) == (
            OPERATOR, "mine", "alice",
        )  # fmt: skip
        assert issued.grant.key == ""
    assert len(tickets) == 0


def redeemed(tickets: Tickets, secret: str, by: Peer) -> str | None:
    with tickets.redeem(secret, by) as issued:
        return issued.grant.path


def test_a_claim_is_spent_by_success_alone() -> None:
    tickets = Tickets()
    secret = claim(tickets)
    refusal = Refusal("try-later", "the file's seals are being recalled")
    with pytest.raises(Refusal, match="being recalled"), tickets.redeem(secret, OPERATOR):
        raise refusal
    # By two at once.
    with tickets.redeem(secret, OPERATOR), pytest.raises(Refusal, match="try-later"):
        redeemed(tickets, secret, OPERATOR)
    with pytest.raises(Refusal, match="denied"):
        redeemed(tickets, secret, OPERATOR)


def test_the_wrong_user_does_not_use_a_claim_up() -> None:
    tickets = Tickets()
    secret = claim(tickets, only=Conditions(uids=[1000]))
    with pytest.raises(Refusal, match="denied"):
        redeemed(tickets, secret, Peer(2, 1001, 1001))
    assert redeemed(tickets, secret, Peer(2, 1000, 1000)) == "/pmem/a"


def test_claims_of_one_principal_leave_as_many_for_others() -> None:
    tickets = Tickets()
    for _ in range(MOST // 2):
        claim(tickets, principal="greedy")
    with pytest.raises(Refusal, match=f"greedy has {MOST // 2}"):
        claim(tickets, principal="greedy")
    for _ in range(100):
        claim(tickets, principal="other")


def test_a_claim_expires() -> None:
    tickets = Tickets()
    secret = claim(tickets, seconds=0.01)
    time.sleep(0.02)
    with pytest.raises(Refusal, match="expired"):
        redeemed(tickets, secret, OPERATOR)
    assert len(tickets) == 0


# Measures


def heard(name: str, seal: str | None = None, **data: object) -> Event:
    return Event(seq=1, time=0.0, name=name, seal=seal, data=dict(data))


def test_what_is_heard_is_counted() -> None:
    taken = Metrics()
    taken.hear(heard("conflict", verdict="held"))
    taken.hear(heard("conflict-ended", result=0, waited=0.3))
    taken.hear(heard("refused", code="denied"))
    taken.hear(heard("recall", "a", merged=False))
    taken.hear(heard("state", "a", to="returned"))
    taken.hear(heard("state", "b", to="returned"))
    assert taken.counters["conflicts"] == {"held": 1}
    assert taken.counters["conflicts_ended"] == {"passed": 1}
    assert taken.counters["refusals"] == {"denied": 1}
    assert taken.counters["transitions"] == {"returned": 2}
    told = taken.latencies["conflict"].told()
    assert told.counts[told.bounds.index(0.5)] == 1
    assert told.sum == 0.3
    assert sum(taken.latencies["recall"].counts) == 1, "b was not recalled"


def test_what_is_refused_is_not_timed() -> None:
    taken = Metrics()
    with pytest.raises(Refusal), taken.timed("grant"):
        raise Refusal("denied", "no")
    with taken.timed("grant"):
        pass
    assert sum(taken.latencies["grant"].counts) == 1
    assert list(BOUNDS) == sorted(BOUNDS)
    assert MeasuresReport(run="", counters={}, latencies={}, gauges={})


# Policy


def test_a_policy_that_is_none_changes_nothing(tmp_path: Path) -> None:
    path, taken = tmp_path / "sealsvc.toml", list[object]()
    file = PolicyFile(Config(), lambda section, changed: taken.append((section, changed)))
    with pytest.raises(Refusal, match="without a configuration file"):
        file.reload()
    file.source = path
    with pytest.raises(Refusal, match="io-error"):
        file.reload()
    for text in ("[policy", "[policy]\nsurprise = 1\n", "[policy]\nmax_grace = -1.0\n"):
        path.write_text(text)
        with pytest.raises(Refusal, match="bad-request"):
            file.reload()
    assert not taken
    path.write_text("[policy]\nmax_grace = 7.0\n[service]\nworkers = 2\n")
    report = file.reload()
    assert (report.changed, report.restart) == (["max_grace"], ["service.workers"])
    ((section, changed),) = taken  # type: ignore[misc]
    assert (section.max_grace, changed) == (7.0, ["max_grace"])
    assert file.reload().changed == []


def test_operators_may_be_named() -> None:
    found = config.parse(b'[policy]\noperators = ["root", 7]\n', None)
    assert found.policy.operators == [0, 7]
    with pytest.raises(ConfigError, match="no user 'nobody-at-all'"):
        config.parse(b'[policy]\noperators = ["nobody-at-all"]\n', None)


@pytest.mark.parametrize(
    ("path", "inside"),
    [("/a", True), ("/a/b", True), ("/ab", False), ("/a/../b", False), ("/", False)],
)
def test_below(path: str, inside: bool) -> None:
    assert lies_below(path, ["/a"]) is inside
    assert lies_below(path, ["/a/"]) is inside
    assert lies_below(path, ["/"]) is (".." not in path)


# systemd


def test_a_socket_that_systemd_passed_is_served_and_left(tmp_path: Path) -> None:
    from sealsvc.client import Client

    path = tmp_path / "control.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(tmp_path / "notify"))
    notified.settimeout(PATIENCE)
    # Connected before there is a service: it waits in the queue.
    with listener, notified, Client(str(path), timeout=PATIENCE) as early:
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] ="
            " str(os.getpid()); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
        )
        serve = ("-m", "sealsvc.cli.service", "serve", "--sim", "--socket", str(path))
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(listener.fileno()), *serve],
            cwd=ROOT,
            pass_fds=[listener.fileno()],
            env={
                **os.environ,
                "LISTEN_FDS": "1",
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "200000",
            },
        )
        try:
            assert early.call(Status).result
            told = {notified.recv(100) for _ in range(3)}
            assert told == {b"READY=1", b"WATCHDOG=1"}
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0
        assert path.exists(), "it is systemd's"
