"""sealctl hold while its command runs and after: recalls, signals, a lost service, the return."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import ONE, PATIENCE, FakeDaemon, seal
from sealctl_process import Start

from sealsvc.core.model import ByteRange, Fence, Operation, State
from sealsvc.protocol.seals import Grant, Recall, Reclaim, Return

PYTHON = (sys.executable, "-c")

# Waits for one signal, names it, and exits 0.
AWAIT = """
import signal, sys
wanted = {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
print("ready", flush=True)
print(signal.Signals(signal.sigwait(wanted)).name, flush=True)
"""


def recall(**changes: Any) -> Recall:
    fields: dict[str, Any] = {
        "seal": ONE.id,
        "seqid": 3,
        "tag": "",
        "range": ONE.range,
        "wanted": ONE.range,
    }
    fields["fence"] = Fence.NONE
    return Recall(**fields | {"grace": 10.0, "reason": "backup"} | changes)


@pytest.mark.parametrize(
    ("option", "name"), [((), "SIGTERM"), (("--recall-signal", "usr1"), "SIGUSR1")]
)
def test_recall_becomes_a_signal(
    daemon: FakeDaemon, sealctl: Start, file: Path, option: tuple[str, ...], name: str
) -> None:
    running = sealctl("hold", file, *option, "--", *PYTHON, AWAIT)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    assert running.line() == "ready"
    by = Operation(name="truncate", offset=0, length=0, pid=12, comm="\x1b[2Jrm")
    connection.push(recall(seal="f" * 24))  # somebody else's: no signal
    connection.push(recall(operation=by, range=ByteRange(0, 1 << 20)))
    assert running.line() == name
    connection.take_back()
    status, _, err = running.result()
    assert status == 0
    assert err.count("\n") == 1
    assert f"seal {ONE.id} (0:1M) is recalled for truncate by 12 (\\x1b[2Jrm): backup" in err
    assert f"due in 10s; sent {name}" in err


def test_recall_beside_the_grant_is_not_lost(
    daemon: FakeDaemon, sealctl: Start, file: Path
) -> None:
    running = sealctl("hold", file, "--", "sleep", "60")
    connection = daemon.accept()
    request, [pidfd] = connection.request(Grant)
    os.close(pidfd)
    connection.push(recall())
    with file.open() as opened:
        connection.answer(request, ONE, [opened.fileno()])
    connection.take_back()
    assert running.result()[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_are_forwarded(
    daemon: FakeDaemon, sealctl: Start, file: Path, signum: signal.Signals
) -> None:
    # A session of its own has no terminal, hence no keyboard.
    running = sealctl("hold", file, "--", *PYTHON, AWAIT, start_new_session=True)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    assert running.line() == "ready"
    running.signal(signum)
    assert running.line() == signum.name
    connection.take_back()
    assert running.result()[0] == 0


COUNT_INTERRUPTS = """
import signal, sys, time
count = 0
def interrupted(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, interrupted)
print("ready", flush=True)
while not count:
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(40 + count)
"""


def test_keyboard_interrupt_arrives_once(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    """The terminal sends Ctrl-C to the command as well: forwarding it would make two."""
    ours, theirs = os.openpty()
    running = sealctl(
        "hold", file, "--", *PYTHON, COUNT_INTERRUPTS, stdin=theirs,
        preexec_fn=lambda: os.login_tty(os.dup(theirs)),
        stdout=None, stderr=None,
    )  # fmt: skip
    os.close(theirs)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    said = b""
    while b"ready" not in said:
        said += os.read(ours, 1000)
    os.write(ours, b"\x03")
    connection.take_back()
    running.process.wait(PATIENCE)
    os.close(ours)
    assert running.process.returncode == 41


def test_service_goes_away(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    running = sealctl("hold", file, "--", "sh", "-c", "echo on; read go; exit 5", stdin=-1)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    assert running.line() == "on"
    connection.close()
    assert "the service has gone away" in running.process.stderr.readline()
    running.process.stdin.write("\n")
    running.process.stdin.flush()
    # A restarted service still knows the seal, and gets it back.
    daemon.accept().take_back()
    assert running.result() == (5, "", "")


def test_the_command_is_told_that_its_seal_is_over(
    daemon: FakeDaemon, sealctl: Start, file: Path
) -> None:
    running = sealctl("hold", file, "--", *PYTHON, AWAIT)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    assert running.line() == "ready"
    connection.push(recall(state=State.EXPIRED, reason="its ttl has passed", grace=0.0))
    assert running.line() == "SIGTERM"
    request, _ = connection.request(Return)
    connection.fail(request, "no-such-seal")
    status, _, err = running.result()
    assert status == 0
    assert f"seal {ONE.id} is over (expired: its ttl has passed)" in err


def test_the_command_is_told_that_a_new_service_has_no_such_seal(
    daemon: FakeDaemon, sealctl: Start, file: Path
) -> None:
    running = sealctl("hold", file, "--", *PYTHON, AWAIT)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    assert running.line() == "ready"
    connection.close()
    again = daemon.accept()
    request, _ = again.request(Reclaim)
    again.fail(request, "no-such-seal")
    assert running.line() == "SIGTERM"
    last = daemon.accept()
    request, _ = last.request(Return)
    last.fail(request, "no-such-seal")
    status, _, err = running.result()
    assert status == 0
    assert f"seal {ONE.id} is over" in err


def test_service_stays_away(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    running = sealctl("hold", file, "--", "sh", "-c", "echo on; read go; exit 5", stdin=-1)
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    assert running.line() == "on"
    connection.close()
    daemon.path.rename(daemon.path.with_suffix(".away"))
    running.process.stdin.write("\n")
    running.process.stdin.flush()
    status, _, err = running.result()
    daemon.path.with_suffix(".away").rename(daemon.path)
    assert status == 5
    assert f"seal {ONE.id} was not returned: service-unavailable" in err


def test_return_waits_for_grandchildren(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    running = sealctl("hold", file, "--", "true")
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    for _ in range(3):
        request, _ = connection.request(Return)
        connection.fail(request, "still-mapped", "mapped by 99")
    connection.take_back()
    assert running.result() == (0, "", "")


def test_return_gives_up_in_time(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    running = sealctl("hold", file, "--return-wait", "100ms", "--", "sh", "-c", "exit 4")
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    begin = time.monotonic()
    while running.process.poll() is None:
        try:
            request, _ = connection.request(Return)
        except AssertionError:  # it gave up
            break
        connection.fail(request, "still-mapped", "mapped by 99")
    status, _, err = running.result()
    assert time.monotonic() - begin < PATIENCE / 2
    assert status == 4
    assert "was not returned: still-mapped: mapped by 99" in err
    assert "it stays until they unmap the range" in err


def test_seal_released_by_the_service_itself(
    daemon: FakeDaemon, sealctl: Start, file: Path
) -> None:
    running = sealctl("hold", file, "--", "true")
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    request, _ = connection.request(Return)
    connection.fail(request, "no-such-seal")
    assert running.result() == (0, "", "")


def test_lost_seal_is_told(daemon: FakeDaemon, sealctl: Start, file: Path) -> None:
    running = sealctl("hold", file, "--", "true")
    connection, _, pidfd = daemon.grant(file)
    os.close(pidfd)
    request, _ = connection.request(Return)
    connection.answer(request, seal(state=State.LOST, reason="drift at 4096"))
    assert running.result() == (0, "", f"sealctl: seal {ONE.id} ended as lost: drift at 4096\n")
