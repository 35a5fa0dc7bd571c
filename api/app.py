"""Composition: everything is built and joined here, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Depends, FastAPI

from api import (
    dashboard,
    events,
    files,
    filesystems,
    health,
    history,
    jobs,
    metrics,
    policy,
    problems,
    recalls,
    seals,
    session,
    status,
)
from api.auth import authorise
from api.connection import Backoff, Connection
from api.envelope import Envelope
from api.feed import Feed
from api.openapi import Application
from api.principals import Principals
from api.rates import Rates
from api.sessions import Sessions
from api.settings import Settings

NOUNS = (
    seals.router,
    recalls.router,
    files.router,
    history.router,
    filesystems.router,
    events.router,
    jobs.router,
    policy.router,
    session.router,
    status.router,
)


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
    """Raises SettingsError when the principals file cannot be used."""
    path = settings.control_socket
    feed = Feed(path, settings.events_queue, settings.events_bytes, settings.events_clients)
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
    app.state.principals = Principals(settings.principals)
    app.state.sessions = Sessions()
    app.state.rates = Rates()
    app.state.feed = feed
    app.state.connection = Connection(path, feed.follow, backoff)
    problems.install(app)
    app.router.routes.append(seals.QUICK)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(session.login_router)
    app.include_router(events.sockets)
    app.include_router(_v1())
    dashboard.install(app)
    app.add_middleware(Envelope)
    return app
