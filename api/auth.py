"""Who may ask: bearer tokens for every change; reading is open to callers on loopback."""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from pathlib import Path

from fastapi import Request

from api.settings import SettingsError, is_loopback
from sealsvc.errors import Refusal

_LINE = re.compile(r"sha256:([0-9a-f]{64})")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


class Tokens:
    """The digests of the tokens in force; the tokens themselves are nowhere on this side."""

    def __init__(self, digests: tuple[bytes, ...] = ()) -> None:
        self._digests = digests

    def __len__(self) -> int:
        return len(self._digests)

    def accepts(self, token: str) -> bool:
        presented = digest(token)
        # All are compared before any is looked at, so the time tells nothing of which matched.
        matches = [hmac.compare_digest(presented, known) for known in self._digests]
        return any(matches)


def read_tokens(path: Path | None) -> Tokens:
    """The tokens file: one `sha256:<hex>` per line; blank lines and # comments are skipped.

    Raises SettingsError, which names the line and never quotes it: a token pasted in the clear
    must not end up in a log.
    """
    if path is None:
        return Tokens()
    try:
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SettingsError(f"{path}: others than its owner may write to it (chmod go-w)")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the token file {path}: {error}") from None
    numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    return Tokens(tuple(_parsed(path, n, s) for n, s in numbered if s and not s.startswith("#")))


def _parsed(path: Path, number: int, line: str) -> bytes:
    match = _LINE.fullmatch(line)
    if match is None:
        raise SettingsError(f"{path}:{number}: want sha256: and 64 lower-case hex digits")
    return bytes.fromhex(match[1])


def _is_local(request: Request) -> bool:
    """From loopback *and* meant for it: a browser on this machine that a hostile site's name has
    been re-bound to 127.0.0.1 for comes from loopback too, but sends that site's Host."""
    host = request.url.hostname or ""
    return request.client is not None and is_loopback(request.client.host) and is_loopback(host)


def _bearer(request: Request) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


async def authorise(request: Request) -> None:
    """The gate of every route under /v1. It goes by method, so a new route cannot forget it."""
    tokens: Tokens = request.app.state.tokens
    token = _bearer(request)
    if token is not None:
        if not tokens.accepts(token):
            raise Refusal("unauthenticated", "the bearer token is not one of the token file")
    elif request.method not in _READING:
        raise Refusal("unauthenticated", f"{request.method} changes state and needs a bearer token")
    elif not _is_local(request):
        raise Refusal("unauthenticated", "callers that are not on loopback need a bearer token")
