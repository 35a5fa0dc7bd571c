"""Requests that are sent again: by whoever asked, through a restart, for the same descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.states import LIVE
from sealsvc.protocol.admin import Redeem
from sealsvc.protocol.seals import HolderSpec, IssueClaim, Recall, Return, Show
from tests.support.refusals import refusal
from tests.support.service import RISKS, MiB, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel


@pytest.fixture
def running(xfs: Path, tmp_path: Path) -> Iterator[Running]:
    with served(Running(tmp_path, [xfs], RISKS + "courtesy = 0.0\n")) as made:
        yield made


@pytest.fixture
def files(xfs: Path) -> Iterator[list[Path]]:
    made = [xfs / f"repeats-{n}-{os.getpid()}" for n in range(2)]
    for path in made:
        path.write_bytes(os.urandom(MiB))
    os.sync()
    yield made
    for path in made:
        path.unlink()


def test_a_grant_for_another_users_process_is_repeated_after_a_restart(
    running: Running, files: list[Path]
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, user=65534, extra_groups=[]
    )
    terms = {"path": str(files[0]), "key": "k", "holder": HolderSpec(pid=holder.pid)}
    try:
        with Client(str(running.socket)) as client:
            seal = client.grant(**terms).seal.id
            running.kill()
            running.start()
            running.ready()
            client.reconnect(PATIENCE)
            assert client.grant(**terms).seal.id == seal
            other = terms | {"tag": "other"}
            assert refusal(lambda: client.grant(**other)).code == "bad-request"
    finally:
        holder.communicate(b"\n")


def test_a_key_is_not_answered_for_another_files_descriptor(
    running: Running, files: list[Path]
) -> None:
    fds = [os.open(path, os.O_RDWR) for path in files]
    try:
        with Client(str(running.socket)) as client:
            seal = client.grant([fds[0]], kind="shared", key="k").seal.id
            assert client.grant([fds[0]], kind="shared", key="k").seal.id == seal
            again = refusal(lambda: client.grant([fds[1]], kind="shared", key="k"))
            assert again.code == "bad-request"
            client.call(Return, seal=seal)
    finally:
        for fd in fds:
            os.close(fd)


def test_a_claim_that_was_refused_for_now_can_be_shown_again(
    running: Running, files: list[Path]
) -> None:
    with Client(str(running.socket)) as client, Client(str(running.socket)) as other:
        held = client.grant(path=str(files[0]), kind="exclusive")
        os.close(held.fds[0])
        holder = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        spec = HolderSpec(pid=holder.pid)
        claim = client.call(IssueClaim, path=str(files[1]), kind="exclusive").result.claim
        there = client.grant(path=str(files[1]), kind="exclusive", holder=spec).seal
        assert refusal(lambda: other.call(Redeem, claim=claim)).code == "seal-conflict"
        holder.communicate(b"\n")
        until(lambda: client.call(Show, seal=there.id).seal.state not in LIVE)
        redeemed = other.call(Redeem, claim=claim)
        os.close(redeemed.fds[0])
        assert refusal(lambda: other.call(Redeem, claim=claim)).code == "denied"


def test_a_holder_is_told_that_its_seal_has_expired(running: Running, files: list[Path]) -> None:
    with Client(str(running.socket)) as client:
        granted = client.grant(path=str(files[0]), kind="shared", ttl=0.2)
        os.close(granted.fds[0])
        told = next(push for push in client.pushes(PATIENCE) if isinstance(push, Recall))
        assert (told.seal, told.state) == (granted.seal.id, "expired")
