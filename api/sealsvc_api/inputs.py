"""Untrusted input -> typed values. msgspec checks all of it; unknown fields fail."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import msgspec
from fastapi import Request

from sealsvc.core.errors import Refusal

T = TypeVar("T", bound=msgspec.Struct)

# The control protocol takes 64 KiB per message; what is added to a body is far below the rest.
MAX_BODY = 48 * 1024

_PLACE = re.compile(r" - at `\$\.?(.*)`$")
_WHOLE = re.compile(r"-?[0-9]+")
_MISSING = re.compile(r"missing required field `(\w+)`")
_WHY_REQUIRED = {
    "holder": "a REST caller cannot hold a seal itself, so `holder` {pid, fd?} must name the"
    " process that will",
}


def _refused(where: str, error: Exception) -> Refusal:
    text = str(error)
    place, missing = _PLACE.search(text), _MISSING.search(text)
    name = missing[1] if missing else ""
    field = ".".join(part for part in (place[1] if place else "", name) if part)
    why = f" ({_WHY_REQUIRED[name]})" if name in _WHY_REQUIRED else ""
    return Refusal("bad-request", f"{where}: {text}{why}", {"field": field})


async def _read(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY:
            message = f"the body is larger than {MAX_BODY} bytes"
            raise Refusal("too-large", message, {"limit": MAX_BODY})
    return bytes(data) or b"{}"


def _is_whole(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        return _is_whole(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return any(_is_whole(arm) for arm in get_args(kind))
    return kind is int


def body(kind: type[T]) -> Callable[[Request], Awaitable[T]]:
    """A dependency: the JSON body as a `kind`. No body at all is an empty object."""
    decoder = msgspec.json.Decoder(kind)

    async def read(request: Request) -> T:
        media = request.headers.get("content-type", "application/json").partition(";")[0].strip()
        if media.lower() != "application/json":
            raise Refusal("bad-request", f"the body is {media}, want application/json")
        try:
            return decoder.decode(await _read(request))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _refused("body", error) from None

    return read


def query(kind: type[T]) -> Callable[[Request], Awaitable[T]]:
    """A dependency: the query string as a `kind`; each name at most once."""
    numbers = {f.encode_name for f in msgspec.structs.fields(kind) if _is_whole(f.type)}

    async def read(request: Request) -> T:
        pairs = request.query_params.multi_items()
        given = dict(pairs)
        if len(given) != len(pairs):
            raise Refusal("bad-request", "query: a parameter is given more than once")
        for name in numbers & given.keys():
            # msgspec takes 1e3 and 1.0 for whole numbers.
            if not _WHOLE.fullmatch(given[name]):
                raise Refusal(
                    "bad-request",
                    f"query: {name}={given[name]!r} is not a whole number",
                    {"field": name},
                )
        try:
            return msgspec.convert(given, kind, strict=False)
        except msgspec.ValidationError as error:
            raise _refused("query", error) from None

    return read
