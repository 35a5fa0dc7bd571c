"""What the rings of one user may take, and when it is given back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.lifecycle.policy import Policy, RingShare
from sealsvc.lifecycle.seals import SealTable
from sealsvc.linux.processes import Peer
from sealsvc.protocol.admin import Measures
from sealsvc.protocol.rings import Attach
from sealsvc.runtime.config import PolicySection
from tests.support.service import ROOT, Running
from tests.support.waiting import until

USER, OTHER, OPERATOR = Peer(1, 1000, 1000), Peer(2, 1001, 1001), Peer(3, 0, 0)

# Makes rings of 16 MiB until it may have no more, says how many, and waits to be killed.
TAKE = """
import os, sys, time
os.setgroups([]); os.setgid(65534); os.setuid(65534)
from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.rings import Attach
made = []
try:
    while True:
        made.append(Client(sys.argv[1]))
        reply = made[-1].call(Attach, slots=1, data=2**24)
        [os.close(fd) for fd in reply.fds]
except Refusal as refusal:
    print(len(made) - 1, refusal.code, refusal.details.get("limit"), flush=True)
time.sleep(600)
"""


@pytest.mark.kernel
def test_ring_memory_is_bounded_per_user_and_goes_with_its_client(running: Running) -> None:
    os.chmod(running.directory, 0o755)
    taker = subprocess.Popen(
        # By a relative path: the directories above are not the user's to search.
        [sys.executable, "-c", TAKE, running.socket.name],
        cwd=running.directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert taker.stdout is not None
        assert taker.stdout.readline().split() == ["3", "limit-reached", "max_ring_bytes_per_user"]
        with Client(str(running.socket)) as operator:
            reply = operator.call(Attach, slots=1, data=2**24)  # others have their own share
            for fd in reply.fds:
                os.close(fd)
    finally:
        taker.kill()
        taker.communicate()
    with Client(str(running.socket)) as operator:
        until(lambda: operator.call(Measures).result.gauges["rings"]["rings"] <= 1)


def admitted(policy: Policy, peer: Peer, slots: int, *rings: RingShare, size: int = 1) -> bool:
    try:
        policy.admit_ring(peer, slots, size, rings, SealTable())
    except Refusal as refusal:
        return refusal.code != "limit-reached"
    return True


def test_a_user_has_no_more_slots_than_are_left_for_others() -> None:
    policy = Policy(PolicySection(max_seals=1000))
    assert admitted(policy, USER, 500)
    assert not admitted(policy, USER, 501)
    assert admitted(policy, OPERATOR, 1000)
    taken = RingShare(USER.uid, 500, 1)
    assert not admitted(policy, USER, 1, taken)
    assert admitted(policy, OTHER, 250, taken)
    assert not admitted(policy, OTHER, 251, taken)


def test_a_user_has_no_more_rings_than_are_left_for_others() -> None:
    policy = Policy(PolicySection())
    mine = [RingShare(USER.uid, 1, 1)] * 2047
    assert admitted(policy, USER, 1, *mine)
    assert not admitted(policy, USER, 1, *mine, mine[0])
    assert admitted(policy, OTHER, 1, *mine, mine[0])


def test_a_user_has_its_own_share_of_memory() -> None:
    policy = Policy(PolicySection(max_ring_bytes_per_user=100))
    taken = RingShare(USER.uid, 1, 60)
    assert admitted(policy, USER, 1, taken, size=40)
    assert not admitted(policy, USER, 1, taken, size=41)
    assert admitted(policy, OTHER, 1, taken, size=100)
