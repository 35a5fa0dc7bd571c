"""Results as HTTP responses: the same JSON as on the control socket."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from fastapi import Response

from sealsvc.messages import encode


def answer(
    result: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    # no-cache, not no-store: a copy may be kept, but its ETag must be shown before it is used.
    sent = {"Cache-Control": "no-cache", **(headers or {})}
    return Response(encode(result), status, sent, media_type="application/json")
