"""Results as HTTP responses: the same JSON as on the control socket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlencode

import msgspec
from fastapi import Request, Response

from sealsvc.protocol.messages import encode
from sealsvc.protocol.seals import SealInfo
from sealsvc_api.etags import etag


def answer(
    result: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    # no-cache, not no-store: a copy may be kept, but its ETag must be shown before it is used.
    sent = {"Cache-Control": "no-cache", **(headers or {})}
    return Response(encode(result), status, sent, media_type="application/json")


def shown(seal: SealInfo, status: int = 200, **headers: str) -> Response:
    return answer(seal, status, {"ETag": etag(seal.seqid), **headers})


class _Page(Protocol):
    @property
    def next(self) -> str | int | None: ...


def paged(request: Request, page: _Page) -> Response:
    """With the Link field of RFC 8288 to the page behind it."""
    assert isinstance(page, msgspec.Struct)
    if page.next is None:
        return answer(page)
    query = urlencode({**request.query_params, "after": str(page.next)})
    return answer(page, 200, {"Link": f'<{request.url.path}?{query}>; rel="next"'})
