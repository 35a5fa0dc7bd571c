"""Lists that are longer than one answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sealsvc.client.socket import Client
from sealsvc.protocol.seals import SealInfo

_PAGE = 1000


def every_seal(client: Client, **filters: Any) -> Iterator[SealInfo]:
    """The seals that `List` names with these filters, page by page."""
    after: str | None = None
    while True:
        page = client.seals(after=after, limit=_PAGE, **filters)
        yield from page.seals
        if page.next is None:
            return
        after = page.next
