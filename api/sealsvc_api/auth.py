"""The gate of /v1: whoever asks is identified, and may do what the route's action says, or gets no
further. Nothing is open but what says so by having no gate (health, the description, the pages)."""

from __future__ import annotations

import functools
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.requests import HTTPConnection

from sealsvc.core.errors import Refusal
from sealsvc_api.access import Action, Caller
from sealsvc_api.peers import STATE, Peer
from sealsvc_api.principals import Known, Principals
from sealsvc_api.rates import Rates
from sealsvc_api.sessions import COOKIE, CSRF_HEADER, Sessions, csrf_matches
from sealsvc_api.shares import Shares

ACTION = "x-sealsvc-action"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})


def _bearer(connection: HTTPConnection) -> str | None:
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def identify(connection: HTTPConnection) -> Caller:
    """By the strongest proof that is shown; a wrong one is refused, not passed over."""
    principals: Principals = connection.app.state.principals
    known = principals.known
    if "authorization" in connection.headers:
        token = _bearer(connection)
        caller = known.by_token(token) if token else None
        if caller is None:
            raise Refusal("unauthenticated", "the bearer token is not known")
        return caller
    if cookie := connection.cookies.get(COOKIE):
        return _of_session(connection, known, cookie)
    peer: Peer = connection.scope.get("state", {}).get(STATE, Peer())
    caller = known.by_certificate(peer.certificate) if peer.certificate else None
    if caller is None and peer.uid is not None:
        caller = known.by_peer(peer.uid, peer.gids)
    if caller is None:
        raise Refusal("unauthenticated", "show a bearer token, or a certificate that is known here")
    return caller


def _of_session(connection: HTTPConnection, known: Known, cookie: str) -> Caller:
    sessions: Sessions = connection.app.state.sessions
    session = sessions.find(cookie)
    caller = known.by_proof(session.proof) if session else None
    if session is None or caller is None:
        raise Refusal("unauthenticated", "the session is over: log in again")
    reading = connection.scope["type"] == "http" and connection.scope["method"] in _READING
    if not reading and not _same_origin(connection):
        raise Refusal("denied", "the request comes from a page of another origin")
    socket = connection.scope["type"] == "websocket"  # scripts cannot give those headers
    shown = connection.headers.get(CSRF_HEADER)
    if not (reading or socket or csrf_matches(session, shown)):
        raise Refusal("denied", f"a session changes nothing without its {CSRF_HEADER}")
    return caller


def _same_origin(connection: HTTPConnection) -> bool:
    """SameSite=Strict and the CSRF token stand before this; it is what WebSockets have."""
    origin = connection.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == connection.headers.get("host")


def admit(connection: HTTPConnection, action: Action) -> Caller:
    """Identified, within its rate and its share, and allowed. Envelope gives the share back."""
    caller = identify(connection)
    rates: Rates = connection.app.state.rates
    connection.state.caller = caller
    connection.state.rate = rates.take(caller.name, caller.rate)
    demand(caller, action)
    if connection.scope["type"] == "http":
        in_flight: Shares = connection.app.state.in_flight
        in_flight.take(caller)
        connection.state.share = in_flight
        connection.state.still = functools.partial(still, connection, caller)
    return caller


def still(connection: HTTPConnection, caller: Caller) -> bool:
    """Whether whoever opened this connection is still known, with the same rights."""
    try:
        return identify(connection) == caller
    except Refusal:
        return False


def demand(caller: Caller, action: Action) -> None:
    if not caller.may(action):
        raise Refusal(
            "denied",
            f"{caller.name} ({caller.role}) may not: {action}",
            {"action": str(action), "role": str(caller.role)},
        )


async def authorise(connection: HTTPConnection) -> Caller:
    """A dependency of every route under /v1. Without an action nobody passes."""
    extra = getattr(connection.scope.get("route"), "openapi_extra", None) or {}
    if ACTION not in extra:
        raise Refusal("internal", "the route names no action")
    return admit(connection, Action(extra[ACTION]))


Asking = Annotated[Caller, Depends(authorise)]
