"""openapi.json: FastAPI's account of the routes, msgspec's of the values, joined."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.operations import REF
from api.problems import Problem
from api.schemas import AuditBody, GrantBody, Health, RecallBody, ValidationBody
from sealsvc import messages

DESCRIPTION = """\
Seals on the extent maps of files. Every change needs a bearer token; reading is open to callers on
loopback. Every refusal is application/problem+json whose `type` and `code` are stable."""

DOCUMENTED = (
    GrantBody,
    RecallBody,
    AuditBody,
    ValidationBody,
    Health,
    Problem,
    messages.SealInfo,
    messages.SealPage,
    messages.ExtentPage,
    messages.MappingReport,
    messages.RecallReport,
    messages.AuditReport,
    messages.FilesystemList,
    messages.ServiceStatus,
    messages.Event,
)
_BEARER = {"type": "http", "scheme": "bearer", "description": "A token of the API's token file"}


class Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = _document(self)
        return self.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(
        title="sealsvc", version=str(messages.VERSION), description=DESCRIPTION, routes=app.routes
    )
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            _drop_automatic_422(operation)
            operation["security"] = _security(path, method)
    _, schemas = msgspec.json.schema_components(DOCUMENTED, ref_template=REF)
    # Instead of pydantic's: nothing here answers with its validation errors.
    document["components"] = {"schemas": schemas, "securitySchemes": {"bearer": _BEARER}}
    return document


def _drop_automatic_422(operation: dict[str, Any]) -> None:
    """FastAPI adds one to each route with parameters; api.problems turns those into 400."""
    automatic = operation["responses"].get("422", {})
    if "application/json" in automatic.get("content", {}):
        del operation["responses"]["422"]


def _security(path: str, method: str) -> list[dict[str, list[str]]]:
    if not path.startswith("/v1/"):
        return []
    # An empty requirement beside the other says: optional (for callers on loopback).
    return [{}, {"bearer": []}] if method == "get" else [{"bearer": []}]


def rendered(app: FastAPI) -> str:
    return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    from api.app import build_app  # the application is built of this module
    from api.settings import Settings

    print(rendered(build_app(Settings())), end="")
