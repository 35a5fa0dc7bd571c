"""The dashboard: static files, as they lie in pages/. They know nothing: every fact comes from
/v1, with the rights of whoever is logged in."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGES = Path(__file__).parent / "pages"


class _Pages(StaticFiles):
    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        # Kept, but asked for again: a new version of the service shows its own pages at once.
        response.headers["Cache-Control"] = "no-cache"
        return response


async def _home() -> Response:
    return RedirectResponse("/dashboard/", 307)


def install(app: FastAPI) -> None:
    for path in ("/", "/dashboard"):  # the mount below serves what is behind the slash
        app.add_api_route(path, _home, include_in_schema=False)
    app.mount("/dashboard", _Pages(directory=PAGES, html=True), name="dashboard")
