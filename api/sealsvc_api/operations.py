"""How a route is described in openapi.json: by an example, whose type is the schema."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import Response

from sealsvc.core.errors import TABLE, Refusal
from sealsvc_api.access import Action
from sealsvc_api.problems import MEDIA_TYPE, problem

REF = "#/components/schemas/{name}"
EXAMPLE_REF = "#/components/examples/{name}"
UNIVERSAL = ("internal", "bad-request")
GUARDED = ("unauthenticated", "denied", "limit-reached", "service-unavailable", *UNIVERSAL)
CHANGING = (*GUARDED, "too-large")

Schema = dict[str, Any]


def _json(example: msgspec.Struct) -> Schema:
    ref = {"$ref": REF.format(name=type(example).__name__)}
    return {"application/json": {"schema": ref, "example": msgspec.to_builtins(example)}}


def header(description: str, **schema: Any) -> Schema:
    return {"description": description, "schema": {"type": "string", **schema}}


def taken(name: str, description: str, example: str) -> Schema:
    """A request header."""
    described = {"description": description, "schema": {"type": "string"}, "example": example}
    return {"name": name, "in": "header", "required": False, **described}


def examples_of_refusals() -> Schema:
    """One for each row of the error table; the responses refer to them."""
    return {
        code: {
            "summary": row.title,
            "value": msgspec.to_builtins(problem(Refusal(code, row.title.lower()), "/v1/...")),
        }
        for code, row in TABLE.items()
    }


def _problems(codes: tuple[str, ...]) -> dict[int, Schema]:
    """One response per HTTP status, with an example of each code that has it."""
    responses: dict[int, Schema] = {}
    for code in dict.fromkeys(codes):
        status = TABLE[code].status
        media = {"schema": {"$ref": REF.format(name="Problem")}, "examples": {}}
        empty = {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: media}}
        response = responses.setdefault(status, empty)
        response["content"][MEDIA_TYPE]["examples"][code] = {"$ref": EXAMPLE_REF.format(name=code)}
        if TABLE[code].retryable:
            response["headers"] = {"Retry-After": header("Seconds", pattern="^[0-9]+$")}
    return responses


KEY = taken(
    "Idempotency-Key",
    "Sent again with the same key, the request is not carried out twice",
    "8d5a1f0e",
)


ETAG = {"ETag": header("The seal's seqid, quoted", examples=['"2"'])}
LINK = {"Link": header("The next page (rel=next), if there is one")}


def parameters(kind: type[msgspec.Struct]) -> list[Schema]:
    """The query parameters that `inputs.query(kind)` reads."""
    _, (schema) = msgspec.json.schema_components([kind], ref_template=REF)
    properties: Schema = schema[kind.__name__]["properties"]
    return [
        {"name": name, "in": "query", "required": False, "schema": property}
        for name, property in properties.items()
    ]


def operation(
    action: Action | None,
    example: msgspec.Struct,
    *,
    status: int = 200,
    codes: tuple[str, ...] = GUARDED,
    body: msgspec.Struct | None = None,
    query: type[msgspec.Struct] | None = None,
    accepts: tuple[Schema, ...] = (),
    headers: Schema | None = None,
    others: dict[int, Schema] | None = None,
) -> dict[str, Any]:
    """The keyword arguments of a route decorator. `codes` are those it can refuse with; `action`
    is what a caller must be allowed to do (None: the route is outside /v1)."""
    success = {"description": HTTPStatus(status).phrase, "content": _json(example)}
    if headers:
        success["headers"] = headers
    extra: Schema = {"parameters": [*(parameters(query) if query else ()), *accepts]}
    if action is not None:
        extra["x-sealsvc-action"] = str(action)
    if body is not None:
        extra["requestBody"] = {"required": True, "content": _json(body)}
    return {
        "status_code": status,
        "response_class": Response,
        "response_model": None,
        "responses": {status: success, **(others or {}), **_problems(codes)},
        "openapi_extra": extra,
    }
