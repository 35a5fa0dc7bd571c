"""/v1/session: who asks; and the dashboard's login and logout."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from sealsvc.core.errors import Refusal
from sealsvc_api import examples, inputs
from sealsvc_api.access import ALLOWED, Action, Caller
from sealsvc_api.answers import answer
from sealsvc_api.auth import Asking
from sealsvc_api.operations import CHANGING, GUARDED, UNIVERSAL, header, operation
from sealsvc_api.principals import Principals
from sealsvc_api.rates import Rates
from sealsvc_api.schemas import LoginBody, NoQuery, SessionInfo
from sealsvc_api.sessions import COOKIE, LIFE, Session, Sessions

NOTHING = Depends(inputs.query(NoQuery))
router = APIRouter(tags=["session"], dependencies=[NOTHING])
# Whoever logs in has nothing to show at the gate yet.
login_router = APIRouter(prefix="/v1", tags=["session"], dependencies=[NOTHING])

LOGINS_PER_SECOND = 5.0  # with tokens that are not known


def _told(caller: Caller, session: Session | None) -> SessionInfo:
    return SessionInfo(
        name=caller.name,
        role=str(caller.role),
        how=caller.how,
        actions=sorted(str(action) for action in ALLOWED[caller.role] if caller.may(action)),
        scopes=caller.directories,
        csrf=session.csrf if session else None,
    )


@login_router.post(
    "/session",
    summary="Begin a session of the dashboard with a bearer token",
    **operation(
        None,
        examples.SESSION,
        status=201,
        body=examples.LOGIN_BODY,
        codes=(*UNIVERSAL, "unauthenticated", "limit-reached", "too-large"),
        headers={"Set-Cookie": header("The session; HttpOnly and SameSite=Strict")},
    ),
)
async def login(
    request: Request, body: Annotated[msgspec.Struct, Depends(inputs.body(LoginBody))]
) -> Response:
    rates: Rates = request.app.state.rates
    principals: Principals = request.app.state.principals
    sessions: Sessions = request.app.state.sessions
    assert isinstance(body, LoginBody)
    caller = principals.known.by_token(body.token)
    if caller is None:
        # A rate that all share who are nobody: they keep nobody else from logging in.
        rates.take("\0login", LOGINS_PER_SECOND)
        raise Refusal("unauthenticated", "the token is not known")
    request.state.caller = caller
    request.state.rate = rates.take(caller.name, caller.rate)
    cookie, session = sessions.begin(caller.proof)
    response = answer(_told(caller, session), 201, {"Cache-Control": "no-store"})
    secure = request.url.scheme == "https"
    response.set_cookie(
        COOKIE, cookie, max_age=int(LIFE), httponly=True, samesite="strict", secure=secure
    )
    return response


@router.get(
    "/session",
    summary="Who asks, and what they may do",
    **operation(Action.SESSION, examples.SESSION, codes=GUARDED),
)
async def show(request: Request, caller: Asking) -> Response:
    sessions: Sessions = request.app.state.sessions
    cookie = request.cookies.get(COOKIE)
    session = sessions.find(cookie) if cookie and caller.how == "session" else None
    return answer(_told(caller, session), 200, {"Cache-Control": "no-store"})


@router.delete(
    "/session",
    summary="End the session",
    **operation(Action.SESSION, examples.SESSION, codes=CHANGING),
)
async def logout(request: Request, caller: Asking) -> Response:
    sessions: Sessions = request.app.state.sessions
    if cookie := request.cookies.get(COOKIE):
        sessions.end(cookie)
        del request.state.still  # this answer is for who asked, though its session is over
    response = answer(_told(caller, None), 200, {"Cache-Control": "no-store"})
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response
