"""Composition: everything is built and joined here, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI

from api import events, filesystems, health, problems, recalls, seals, status
from api.auth import authorise, read_tokens
from api.connection import Backoff, Connection
from api.feed import Feed
from api.openapi import Application
from api.settings import Settings

NOUNS = (seals.router, recalls.router, filesystems.router, events.router, status.router)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with app.state.connection.kept():
        yield


def _v1() -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[Depends(authorise)])
    for noun in NOUNS:
        router.include_router(noun)
    return router


def build_app(settings: Settings) -> FastAPI:
    """Raises SettingsError when the token file cannot be used."""
    path = settings.control_socket
    feed = Feed(path, settings.events_queue, settings.events_clients)
    backoff = Backoff(settings.shortest_backoff, settings.longest_backoff)
    # No documentation pages: they would run scripts from somebody else's server.
    app = Application(
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.settings = settings
    app.state.tokens = read_tokens(settings.token_file)
    app.state.feed = feed
    app.state.connection = Connection(path, feed.follow, backoff)
    problems.install(app)
    app.include_router(health.router)
    app.include_router(_v1())
    return app
