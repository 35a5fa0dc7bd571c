"""How seals end: returns, exits in every manner, fences, expiry, drift."""

from __future__ import annotations

import array
import mmap
import os
import signal
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.doctor import syscalls
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.seals import Extents, List, Recall, RecallSeals, Return, Show
from sealsvc.protocol.system import Audit, AuditReport
from tests.support.service import RISKS, serving
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

# Takes a seal on argv[2] over the socket argv[1], maps it, and then does what argv[3] says.
HOLDER = """
import json, mmap, os, signal, sys, time
from sealsvc.client import Client
client = Client(sys.argv[1])
reply = client.grant(path=sys.argv[2], kind="shared", **json.loads(sys.argv[4]))
fd = reply.fds[0]
mapping = mmap.mmap(fd, 0)
print(reply.seal.id, flush=True)
exec(sys.argv[3])
"""


def refused(call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value


@contextmanager
def holding(
    socket: str, file: Path, code: str, options: str = "{}"
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, socket, str(file), code, options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().decode().strip()
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()


def state(client: Client, seal: str) -> str:
    live = {info.id: info.state for info in client.call(List, limit=40).result.seals}
    return live.get(seal, "over")


def becomes(client: Client, seal: str, wanted: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while (found := state(client, seal)) != wanted:
        assert time.monotonic() < deadline, f"the seal is {found}, not {wanted}"
        time.sleep(0.01)


def swap_blocks(file: Path, on_xfs: bool) -> None:
    swap_with(donor_for(file), file, on_xfs)


def donor_for(file: Path) -> Path:
    donor = file.with_suffix(".donor")
    with donor.open("wb") as opened:
        opened.write(bytes(file.stat().st_size))
        opened.flush()
        os.fsync(opened.fileno())
    return donor


def swap_with(donor: Path, file: Path, on_xfs: bool) -> None:
    with file.open("r+b") as a, donor.open("r+b") as b:
        if on_xfs:
            syscalls.swap_extents(a.fileno(), b.fileno())
        else:
            syscalls.move_extents(a.fileno(), b.fileno(), 0, 65536)
    donor.unlink()


def punch(file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["fallocate", "-p", "-o", "0", "-l", "4096", str(file)], stderr=subprocess.DEVNULL
    )


@pytest.mark.parametrize(
    "end",
    ["sys.exit(0)", "os._exit(3)", "os.abort()", "os.kill(os.getpid(), signal.SIGKILL)",
     "os.execvp('true', ['true'])", "1/0"],
)  # fmt: skip
def test_a_holder_that_ends_releases_by_itself(
    socket: str, client: Client, file: Path, end: str
) -> None:
    with holding(socket, file, end) as (process, seal):
        assert seal
        process.wait(PATIENCE)
        becomes(client, seal, "over")


def test_the_promise_outlives_the_holder_in_a_forked_child(
    socket: str, client: Client, file: Path
) -> None:
    code = "pid = os.fork()\nif pid == 0: sys.stdin.read()\nos._exit(0)"
    with holding(socket, file, code, '{"grace": 200}') as (process, seal):
        process.wait(PATIENCE)
        becomes(client, seal, "orphaned")
        intruder = punch(file)
        time.sleep(0.2)
        assert intruder.poll() is None, "a map was changed under a child's mapping"
        assert process.stdin is not None
        process.stdin.close()  # the child ends
        assert intruder.wait(PATIENCE) == 0
        becomes(client, seal, "over")


def test_the_promise_outlives_the_holder_in_a_passed_descriptor(
    socket: str, client: Client, file: Path
) -> None:
    """In flight in a socket, then received and mapped by a process that never asked for a seal."""
    mine, theirs = sockets.socketpair(sockets.AF_UNIX, sockets.SOCK_DGRAM)
    reply = client.grant(path=str(file), kind="shared")
    fd = reply.fds[0]
    mine.sendmsg([b"x"], [(sockets.SOL_SOCKET, sockets.SCM_RIGHTS, array.array("i", [fd]))])
    os.close(fd)
    _, fds, _, _ = sockets.recv_fds(theirs, 1, 1)
    mapping = mmap.mmap(fds[0], 0)
    os.close(fds[0])
    refusal = refused(lambda: client.call(Return, seal=reply.seal.id))
    assert refusal.code == "still-mapped"
    assert str(os.getpid()) in refusal.message
    mapping.close()
    mine.close()
    theirs.close()
    assert client.call(Return, seal=reply.seal.id).seal.state == "returned"


def test_a_return_while_mapped_is_refused_and_changes_nothing(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), kind="shared")
    mapping = mmap.mmap(reply.fds[0], 0)
    assert refused(lambda: client.call(Return, seal=reply.seal.id)).code == "still-mapped"
    assert state(client, reply.seal.id) == "granted"
    mapping.close()  # the descriptor stays open: no mapping is what counts
    assert client.call(Return, seal=reply.seal.id).seal.state == "returned"
    os.close(reply.fds[0])
    assert refused(lambda: client.call(Return, seal=reply.seal.id)).code == "no-such-seal"


def test_a_bystanders_mapping_does_not_hold_up_a_return(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), kind="shared")
    code = "import mmap, os, sys; m = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 0);"
    code += "print(flush=True); sys.stdin.read()"
    bystander = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert bystander.stdout is not None
    bystander.stdout.readline()
    os.close(reply.fds[0])
    assert client.call(Return, seal=reply.seal.id).seal.state == "returned"
    bystander.communicate(b"", timeout=PATIENCE)


@pytest.mark.parametrize("fence", ["kill", "signal"])
def test_a_deaf_holder_is_fenced(tmp_path: Path, root: Path, file: Path, fence: str) -> None:
    """The ladder: SIGTERM first; SIGKILL only for whoever does not mind."""
    options = f'{{"grace": 0.2, "fence": "{fence}"}}'
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if fence == "kill" else ""
    # Short where it is in vain: a slow machine must not need the next step.
    patience = f"signal_grace = {0.5 if deaf else PATIENCE}\nproof_timeout = {PATIENCE}\n"
    with (
        serving(tmp_path, [root], f"{RISKS}[fence]\n{patience}") as socket,
        Client(socket) as client,
        holding(socket, file, deaf + "time.sleep(600)", options) as (process, seal),
    ):
        intruder = punch(file)
        assert intruder.wait(PATIENCE) == 0
        wanted = signal.SIGKILL if fence == "kill" else signal.SIGTERM
        assert process.wait(PATIENCE) == -wanted
        becomes(client, seal, "over")
        ladder = [step.step for step in client.call(Show, seal=seal).seal.ladder]
        assert ladder == ["notify", "signal", *(["kill"] if fence == "kill" else []), "proof"]


def test_a_seal_whose_ttl_has_passed_is_kept_until_somebody_conflicts(
    client: Client, file: Path
) -> None:
    reply = client.grant(path=str(file), kind="shared", ttl=0.3)
    os.close(reply.fds[0])
    assert reply.seal.expires_in is not None
    becomes(client, reply.seal.id, "courtesy")
    assert punch(file).wait(PATIENCE) == 0
    assert client.call(Show, seal=reply.seal.id).seal.state == "expired"


def test_an_operator_recalls_and_grants_are_put_off_meanwhile(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), kind="shared", grace=200)
    os.close(reply.fds[0])
    client.call(RecallSeals, path=str(file), reason="maintenance")
    recall = next(iter(client.pushes(PATIENCE)))
    assert isinstance(recall, Recall)
    assert recall.reason == "maintenance"
    later = refused(lambda: client.grant(path=str(file), kind="shared"))
    assert later.code == "try-later"
    assert later.retry_after
    client.call(Return, seal=reply.seal.id)
    again = client.grant(path=str(file), kind="shared")
    os.close(again.fds[0])
    client.call(Return, seal=again.seal.id)


def test_an_audit_finds_sealed_maps_as_they_were(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), kind="shared")
    os.close(reply.fds[0])
    report = client.call(Audit, seal=reply.seal.id).result
    assert isinstance(report, AuditReport)
    assert (report.checked, report.drifted, report.unreadable) == (1, [], [])
    client.call(Return, seal=reply.seal.id)


def test_drift_is_found_told_and_kept(client: Client, file: Path, root: Path) -> None:
    """A promise broken by what fanotify cannot see: blocks swapped below it, as e4defrag and
    xfs_fsr do, on a seal whose policy took that risk."""
    reply = client.grant(path=str(file), kind="shared")
    os.close(reply.fds[0])
    client.call(Watch)
    swap_blocks(file, "xfs" in str(root))
    report = client.call(Audit, seal=reply.seal.id).result
    assert isinstance(report, AuditReport)
    assert [drift.seal for drift in report.drifted] == [reply.seal.id]
    assert state(client, reply.seal.id) == "lost"
    events = (push.name for push in client.pushes(PATIENCE) if isinstance(push, Event))
    assert "drift" in events
    client.call(Return, seal=reply.seal.id)


def test_the_recorded_map_is_told(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), kind="shared")
    os.close(reply.fds[0])
    page = client.call(Extents, seal=reply.seal.id).result
    assert page.total == reply.seal.extents
    assert sum(extent.length for extent in page.extents) == file.stat().st_size
    client.call(Return, seal=reply.seal.id)


def test_a_stale_seqid_is_refused(client: Client, file: Path) -> None:
    reply = client.grant(path=str(file), kind="shared")
    os.close(reply.fds[0])
    stale = refused(lambda: client.call(Return, seal=reply.seal.id, seqid=99))
    assert stale.code == "stale-seqid"
    client.call(Return, seal=reply.seal.id, seqid=reply.seal.seqid)
