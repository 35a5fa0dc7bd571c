"""The dashboard's sessions: a cookie instead of the token, so that no script ever holds the token.

A session lives in memory, ends with the token it was begun with, and changes nothing without the
CSRF token that only pages of this origin can read. The cookie is SameSite=Strict besides.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

COOKIE = "sealsvc_session"
CSRF_HEADER = "X-CSRF-Token"
LIFE = 12 * 3600.0  # seconds
_MOST = 1024


@dataclass(frozen=True, slots=True)
class Session:
    """`proof` is the digest of the token it was begun with."""

    proof: bytes
    csrf: str
    until: float


class Sessions:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, proof: bytes) -> tuple[str, Session]:
        """The cookie's value, and the session."""
        cookie = secrets.token_urlsafe(32)
        session = Session(proof, secrets.token_urlsafe(32), self._clock() + LIFE)
        self._sessions[_digest(cookie)] = session
        while len(self._sessions) > _MOST:
            self._sessions.popitem(last=False)
        return cookie, session

    def find(self, cookie: str) -> Session | None:
        session = self._sessions.get(_digest(cookie))
        return session if session and session.until > self._clock() else None

    def end(self, cookie: str) -> None:
        self._sessions.pop(_digest(cookie), None)


def csrf_matches(session: Session, shown: str | None) -> bool:
    return hmac.compare_digest(session.csrf.encode(), (shown or "").encode())


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
