"""Claims: a secret, redeemed once, by whom it is for."""

from __future__ import annotations

import time

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.linux.processes import Peer
from sealsvc.protocol.seals import Conditions, IssueClaim
from sealsvc.service.tickets import MOST, Tickets

OPERATOR = Peer(pid=1, uid=0, gid=0)


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
