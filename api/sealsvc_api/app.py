"""Composition: everything is built and joined here, and nowhere else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, FastAPI
from fastapi.telemetry import TelemetryConfig

from sealsvc_api import (
    alarms,
    changes,
    claims,
    copies,
    dashboard,
    events,
    exports,
    files,
    filesystems,
    health,
    history,
    integrity,
    jobs,
    metrics,
    policy,
    problems,
    recalls,
    relocations,
    seals,
    session,
    status,
)
from sealsvc_api.auth import authorise
from sealsvc_api.connection import Backoff, Connection
from sealsvc_api.description import Application
from sealsvc_api.envelope import Envelope
from sealsvc_api.feed import Feed
from sealsvc_api.methods import Head
from sealsvc_api.principals import Principals
from sealsvc_api.rates import Rates
from sealsvc_api.sessions import Sessions
from sealsvc_api.settings import Settings
from sealsvc_api.shares import Shares

if TYPE_CHECKING:
    from sealsvc_api.spans import Spans

NOUNS = (
    seals.router,
    changes.router,
    claims.router,
    recalls.router,
    alarms.router,
    files.router,
    history.router,
    integrity.router,
    filesystems.router,
    exports.router,
    events.router,
    jobs.router,
    copies.router,
    copies.trust_router,
    relocations.router,
    policy.router,
    session.router,
    status.router,
)
# Of what FastAPI could tell by itself, whatever the environment says.
SILENT: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    feed: Feed = app.state.feed
    async with app.state.connection.kept(), feed.rechecked(app.state.settings.recheck):
        yield


def _v1() -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[Depends(authorise)])
    for noun in NOUNS:
        router.include_router(noun)
    return router


def probe_app(app: FastAPI) -> FastAPI:
    """What probes may ask of `app`, to be served on a listener of its own."""
    probes = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, telemetry=SILENT)
    probes.state = app.state
    problems.install(probes)
    probes.include_router(health.router)
    probes.add_middleware(Envelope)
    return probes


def build_app(settings: Settings, spans: Spans | None = None) -> FastAPI:
    """Raises SettingsError when the principals file cannot be used."""
    path = settings.control_socket
    # Together no more than there are connections: else those who may not recall could take all of
    # them, with requests that wait and listeners, neither of which is turned out for another.
    most = min(settings.max_listeners, max(1, settings.max_connections * 3 // 4))
    listeners = Shares("listeners", most, settings.listeners_each, "--max-listeners")
    in_flight = Shares(
        "requests in flight",
        max(1, settings.max_connections - most),
        settings.requests_each,
        "--max-connections",
    )
    feed = Feed(path, settings.events_queue, settings.events_bytes, listeners)
    backoff = Backoff(settings.shortest_backoff, settings.longest_backoff)
    # No documentation pages: they would run scripts from somebody else's server.
    app = Application(
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        telemetry={**SILENT, **(spans.telemetry if spans else {})},
    )
    app.state.settings = settings
    app.state.principals = Principals(settings.principals)
    app.state.sessions = Sessions()
    app.state.rates = Rates()
    app.state.in_flight = in_flight
    app.state.feed = feed
    connect = spans.connection if spans else Connection
    app.state.connection = connect(path, feed.follow, backoff)
    problems.install(app)
    app.router.routes.append(seals.QUICK)
    app.include_router(health.router)
    app.include_router(metrics.router)
    app.include_router(session.login_router)
    app.include_router(events.sockets)
    app.include_router(_v1())
    dashboard.install(app)
    if spans:
        spans.install(app)
    app.add_middleware(Head)
    app.add_middleware(Envelope)  # around all that stands above
    return app
