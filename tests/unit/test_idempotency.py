"""Requests with a key, without a service."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from registry_support import info

from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Grant, Renew
from sealsvc.runtime import clock
from sealsvc.service.idempotency import ReplyCache, digest_of

SEAL = info(1).id


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A clock that runs only when told to."""
    time = {"now": 1000.0}
    monkeypatch.setattr(clock, "now", lambda: time["now"])
    return time


def carried_out(
    once: ReplyCache, user: int, key: str, result: Any = "done", principal: str = ""
) -> bool:
    """Whether the request was carried out, and not answered as an earlier one was."""
    request = Renew(id=1, seal=SEAL, key=key)

    async def act() -> Any:
        return result

    _, again = asyncio.run(once.run((user, principal), request, digest_of(request), act))
    return not again


def test_a_principal_pushes_out_its_own_keys_alone() -> None:
    """All of the REST API come from one user."""
    once = ReplyCache(600, keys_per_user=10)
    assert carried_out(once, 0, "key", principal="careful")
    for n in range(100):
        carried_out(once, 0, f"key {n}", principal="greedy")
    assert not carried_out(once, 0, "key", principal="careful")
    assert carried_out(once, 0, "key 0", principal="greedy")


def test_a_user_pushes_out_its_own_keys_alone() -> None:
    once = ReplyCache(600, keys_per_user=10)
    assert carried_out(once, 0, "k")
    for n in range(100):
        assert carried_out(once, 1, f"k{n}")
    assert not carried_out(once, 0, "k")
    assert not carried_out(once, 1, "k99")
    assert carried_out(once, 1, "k0")


def test_of_all_users_the_one_with_most_keys_loses_some() -> None:
    once = ReplyCache(600, keys=20, keys_per_user=15)
    for user, keys in ((1, 3), (2, 15), (3, 10)):
        for n in range(keys):
            assert carried_out(once, user, f"k{n}")
    assert not carried_out(once, 1, "k0")
    assert not carried_out(once, 3, "k9")
    assert carried_out(once, 2, "k0")


def test_keys_are_forgotten_in_time(still: dict[str, float]) -> None:
    once = ReplyCache(600)
    for user in range(20):
        carried_out(once, user, "k")
    still["now"] += 601
    for _ in range(10):
        carried_out(once, 100, "one")
    assert carried_out(once, 7, "k")


def test_the_key_of_a_grant_lives_as_long_as_its_seal(still: dict[str, float]) -> None:
    live = {SEAL}
    once = ReplyCache(600, live.__contains__, keys_per_user=10)
    carried_out(once, 1, "grant", info(1))
    for n in range(30):
        carried_out(once, 1, f"k{n}")
    still["now"] += 10_000
    for n in range(30):
        carried_out(once, 1, f"k{n}")
    assert not carried_out(once, 1, "grant")
    live.clear()
    carried_out(once, 1, "another")
    assert carried_out(once, 1, "grant")


def test_what_is_refused_is_tried_again() -> None:
    once = ReplyCache(600)
    request = Renew(id=1, seal=SEAL, key="k")

    async def refuse() -> Any:
        raise Refusal("try-later", "not now")

    with pytest.raises(Refusal, match="not now"):
        asyncio.run(once.run((1, ""), request, digest_of(request), refuse))
    assert carried_out(once, 1, "k")


def test_a_key_is_of_one_request_and_its_descriptors() -> None:
    request = Grant(id=1, key="k")
    fds = [os.open(path, os.O_RDONLY) for path in (__file__, __file__, os.path.dirname(__file__))]
    pidfd = os.pidfd_open(os.getpid())
    try:
        one, again, other = (digest_of(request, [fd]) for fd in fds)
        assert one == again == digest_of(Grant(id=2, key="k", trace="t"), [fds[0]])
        assert len({one, other, digest_of(request), digest_of(request, [fds[0], pidfd])}) == 4
    finally:
        for fd in (*fds, pidfd):
            os.close(fd)
