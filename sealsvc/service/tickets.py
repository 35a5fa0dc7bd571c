"""Claims: one user asks for a seal that another process will hold.

A claim is a secret that an operator gets for terms of its choice. The future holder shows it on its
own connection, on which the descriptor can be sent. Claims are kept in memory only: they are
short-lived, and one that is lost in a restart is asked for again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.linux.processes import Peer
from sealsvc.protocol.admin import ClaimInfo
from sealsvc.protocol.seals import Grant, IssueClaim
from sealsvc.runtime import clock
from sealsvc.runtime.limits import Asked, leaves_as_many, name_of

MOST = 4096  # open claims of all users together


@dataclass(frozen=True, slots=True)
class Ticket:
    """A claim. `peer` asked for it, and the grant is made with its rights; the claim counts to the
    share of `asker`. `until` is when it expires (seconds, runtime/clock.py)."""

    peer: Peer
    asker: Asked
    grant: Grant
    until: float


class Tickets:
    """The open claims."""

    def __init__(self) -> None:
        # By digest, so that the time of a look-up reveals nothing about other secrets.
        self._tickets: dict[bytes, Ticket] = {}
        self._redeeming: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(self, peer: Peer, asker: Asked, request: IssueClaim) -> ClaimInfo:
        """Issue a claim, which expires after `request.seconds`. Raises Refusal `limit-reached` when
        `asker` would have more open claims than remain for all others."""
        self._forget()
        mine = sum(issued.asker == asker for issued in self._tickets.values())
        if not leaves_as_many(mine, len(self._tickets), MOST):
            who = f"{name_of(asker)} has {mine}"
            message = f"of {MOST} claims {len(self._tickets)} are open, and {who}"
            raise Refusal("limit-reached", message, {"limit": "claims"}, retry_after=1.0)
        terms = msgspec.structs.asdict(request)
        seconds = terms.pop("seconds")
        secret = secrets.token_urlsafe(32)
        grant = Grant(**{**terms, "id": 0, "key": ""})
        self._tickets[_digest(secret)] = Ticket(peer, asker, grant, clock.now() + seconds)
        return ClaimInfo(claim=secret, expires_in=seconds, uids=request.only.uids)

    @contextmanager
    def redeem(self, secret: str, by: Peer) -> Iterator[Ticket]:
        """A context in which the grant of a claim is made. The claim is used up when the context
        ends without an exception; after a refusal it can be shown again until it expires. A claim
        that the wrong user shows stays open. Raises Refusal `denied`, or `try-later` while the
        claim is being redeemed by another request."""
        self._forget()
        digest = _digest(secret)
        found = self._tickets.get(digest)
        allowed = found.grant.only.uids if found else None
        if found is None or (allowed is not None and by.uid not in allowed):
            raise Refusal("denied", "the claim was redeemed, has expired, or is for another user")
        if digest in self._redeeming:
            raise Refusal("try-later", "the claim is being redeemed", retry_after=0.1)
        self._redeeming.add(digest)
        try:
            yield found
            self._tickets.pop(digest, None)
        finally:
            self._redeeming.discard(digest)

    def _forget(self) -> None:
        now = clock.now()
        for digest in [d for d, issued in self._tickets.items() if issued.until <= now]:
            del self._tickets[digest]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
