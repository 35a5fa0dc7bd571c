"""What a request must not pay for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from sealsvc_api.app import NOUNS


def dependants(route: APIRoute) -> Iterator[Dependant]:
    waiting = [route.dependant]
    while waiting:
        found = waiting.pop()
        yield found
        waiting += found.dependencies


def test_no_request_waits_for_a_thread() -> None:
    """FastAPI sends what is not async through a thread, which costs more than all the rest."""
    routes = [route for noun in NOUNS for route in noun.routes if isinstance(route, APIRoute)]
    assert len(routes) > 30
    calls = {found.call for route in routes for found in dependants(route) if found.call}
    assert [call for call in calls if not inspect.iscoroutinefunction(call)] == []
