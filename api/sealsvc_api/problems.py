"""Refusals as RFC 9457 problem+json. The error table of sealsvc.core.errors is the only source."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from sealsvc.core.errors import Refusal
from sealsvc.protocol.messages import encode
from sealsvc.runtime import even_time
from sealsvc_api.methods import allowed

MEDIA_TYPE = "application/problem+json"
# errno.errorcode knows one name per number, and for 95 it is not the one the kernel uses.
_ERRNO_NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457. `type` is stable per `code`; `errno` is the Linux error name, `nfs` the RFC 8881
    status (null: none); `details` depends on the code; `retry_after` is in seconds."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    errno: str
    nfs: str | None = None
    retryable: bool
    advice: str
    details: dict[str, Any]
    retry_after: float | None = None


def problem(refusal: Refusal, instance: str, status: int | None = None) -> Problem:
    row = refusal.row
    return Problem(
        type=f"urn:sealsvc:error:{row.code}",
        title=row.title,
        status=status or row.status,
        detail=refusal.message,
        instance=instance,
        code=row.code,
        errno=_ERRNO_NAMES[row.errno],
        nfs=row.nfs or None,
        retryable=row.retryable,
        advice=row.advice,
        details=refusal.details,
        retry_after=refusal.retry_after,
    )


def _headers(told: Problem) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if told.retry_after is not None:
        # Delta-seconds are whole (RFC 9110 section 10.2.3); rounding down would invite a retry
        # that is too early, and 0 a busy loop.
        headers["Retry-After"] = str(max(1, math.ceil(told.retry_after)))
    if told.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="sealsvc"'
    return headers


def response(refusal: Refusal, path: str) -> Response:
    """The answer to a request for `path`."""
    return _response(problem(refusal, path))


def _response(told: Problem, extra: Mapping[str, str] | None = None) -> Response:
    headers = {**_headers(told), **(extra or {})}
    return Response(encode(told), told.status, headers, media_type=MEDIA_TYPE)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    if error.row.status == HTTPStatus.NOT_FOUND:
        # What is forbidden is answered as what is missing, and at the same time.
        await even_time.passes(request.state.began)
    return _response(problem(error, request.url.path))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:])
    refusal = Refusal("bad-request", f"{field}: {first['msg']}", {"field": field})
    return _response(problem(refusal, request.url.path))


async def _unrouted(request: Request, error: Exception) -> Response:
    """404 and 405 of the router: an operation the API does not know, with HTTP's own status."""
    assert isinstance(error, HTTPException)
    known = error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
    message = f"{request.method} {request.url.path}: {error.detail}; see /v1/openapi.json"
    refusal = Refusal("unknown-operation" if known else "bad-request", message)
    told = problem(refusal, request.url.path, error.status_code)
    headers = dict(error.headers or {})
    # The router names the methods of one route; others may stand at the same path.
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := allowed(request)):
        headers["Allow"] = ", ".join(methods)
    return _response(told, headers)


async def _defect(request: Request, _: Exception) -> Response:
    """Starlette raises the error again after this answer: the log gets it, the caller does not."""
    refusal = Refusal("internal", "the API met a defect of its own; its log has the traceback")
    return _response(problem(refusal, request.url.path))


def install(app: FastAPI) -> None:
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _unrouted)
    app.add_exception_handler(Exception, _defect)
