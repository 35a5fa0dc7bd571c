"""What every response carries, and what is written down of every request."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sealsvc.core.errors import Refusal
from sealsvc_api.access import Caller
from sealsvc_api.problems import response
from sealsvc_api.rates import Rate
from sealsvc_api.shares import Shares

REQUEST_ID = ContextVar("request_id", default="")
TRACE = "trace"  # in the state of a request that is traced: the trace's id
_GIVEN = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_WAITED = 0.25  # seconds after which an answer is for who still may have it
_READING = frozenset({"GET", "HEAD", "OPTIONS"})

trail = logging.getLogger("sealsvc.api.trail")

# Everything comes from here and nothing is written inline, so the policy needs no exception.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_FIXED = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


class Envelope:
    """ASGI middleware; Starlette's own base class would cost each request a task."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        mark = given if _GIVEN.fullmatch(given) else secrets.token_hex(8).encode()
        REQUEST_ID.set(mark.decode())
        state = scope.setdefault("state", {})
        began, status, withheld = time.monotonic(), 500, False
        state["began"] = began

        async def sending(message: Message) -> None:
            nonlocal status, withheld
            if withheld:
                return
            if message["type"] == "http.response.start":
                if _is_revoked(state, began):
                    await _revoked(scope["path"])(scope, receive, sending)
                    withheld = True
                    return
                status = message["status"]
                headers = [*message.get("headers", ()), *_FIXED, (b"x-request-id", mark)]
                rate: Rate | None = state.get("rate")
                if rate is not None:
                    headers += rate.headers()
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            share: Shares | None = state.get("share")
            if share is not None:
                share.give_back(state["caller"])
            if scope["method"] not in _READING:
                _record(scope, state, status, time.monotonic() - began)


def _is_revoked(state: dict[str, Any], began: float) -> bool:
    """Whether who asked has lost its rights since. Asked once, of a request that waited."""
    still: Callable[[], bool] | None = state.pop("still", None)
    return still is not None and time.monotonic() - began > _WAITED and not still()


def _revoked(path: str) -> Response:
    message = "the rights of who asked have changed meanwhile; what was asked may have been done"
    return response(Refusal("unauthenticated", message), path)


def _record(scope: Scope, state: dict[str, Any], status: int, took: float) -> None:
    """The trail has every attempt to change something, also those that were refused."""
    caller: Caller | None = state.get("caller")
    seal = scope.get("path_params", {}).get("seal", "")
    trail.info(
        "%s %s: %d",
        scope["method"],
        scope["path"],
        status,
        extra={
            "fields": {
                "SEALSVC_PRINCIPAL": caller.name if caller else "",
                "SEALSVC_PROOF": caller.how if caller else "",
                "SEALSVC_SEAL": seal,
                "SEALSVC_TRACE": state.get(TRACE, ""),
                "SEALSVC_STATUS": status,
                "SEALSVC_MILLISECONDS": round(took * 1000, 1),
                "SEALSVC_CLIENT": (scope.get("client") or ("",))[0],
            }
        },
    )
