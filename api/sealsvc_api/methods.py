"""The methods of a resource, which no single route knows: HEAD wherever GET is, and the list of
them for whoever asks by another one (RFC 9110)."""

from __future__ import annotations

from fastapi import Request
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


class Head:
    """ASGI middleware: HEAD is a GET whose answer ends with its header fields. What would stream
    is over with that, too: the server says of an answer that has ended that its reader has gone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})

        await self.app({**scope, "method": "GET"}, receive, sending)


def allowed(request: Request) -> list[str]:
    """Of all routes at this path; empty where what is mounted there decides by itself."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    probe = {"type": "http", "path": request.scope["path"], "root_path": ""}

    def served(method: str) -> bool:
        asked = {**probe, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in routes)

    return [method for method in _METHODS if served("GET" if method == "HEAD" else method)]
