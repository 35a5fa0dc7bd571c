"""The dashboard's sessions: a cookie instead of the token, so that no script ever holds the token.

A session lives in memory, ends with the token it was begun with, and changes nothing without the
CSRF token that only pages of this origin can read. The cookie is SameSite=Strict besides. A token
has no more sessions than its share: one more takes the place of its own oldest.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

COOKIE = "sealsvc_session"
CSRF_HEADER = "X-CSRF-Token"
LIFE = 12 * 3600.0  # seconds
MOST = 64  # of a token


@dataclass(frozen=True, slots=True)
class Session:
    """`proof` is the digest of the token it was begun with."""

    proof: bytes
    csrf: str
    until: float


class Sessions:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[bytes, Session] = {}
        # The keys of each token's, the oldest first. Tokens are as many as the file has known.
        self._of_token: dict[bytes, deque[bytes]] = {}

    def begin(self, proof: bytes) -> tuple[str, Session]:
        """The cookie's value, and the session."""
        cookie = secrets.token_urlsafe(32)
        session = Session(proof, secrets.token_urlsafe(32), self._clock() + LIFE)
        mine = self._of_token.setdefault(proof, deque())
        if len(mine) >= MOST:
            del self._sessions[mine.popleft()]
        mine.append(_digest(cookie))
        self._sessions[mine[-1]] = session
        return cookie, session

    def find(self, cookie: str) -> Session | None:
        session = self._sessions.get(_digest(cookie))
        return session if session and session.until > self._clock() else None

    def end(self, cookie: str) -> None:
        session = self._sessions.pop(_digest(cookie), None)
        if session is not None:
            self._of_token[session.proof].remove(_digest(cookie))


def csrf_matches(session: Session, shown: str | None) -> bool:
    return hmac.compare_digest(session.csrf.encode(), (shown or "").encode())


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
