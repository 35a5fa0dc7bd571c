"""If-Match: a change to a seal is made only as long as the seal is as whoever asks knows it."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header

from sealsvc.core.errors import Refusal
from sealsvc.protocol.seals import Show
from sealsvc_api.connection import Connection
from sealsvc_api.etags import required_seqids
from sealsvc_api.operations import taken

PRECONDITION = taken("If-Match", "Do it only in this state (an ETag)", '"2"')

IfMatch = Annotated[str | None, Header(include_in_schema=False)]


async def seqid_wanted(daemon: Connection, seal: str, if_match: str | None) -> int | None:
    """The seqid for the request, which takes one and checks it itself: that has no race."""
    allowed = required_seqids(if_match)
    if allowed is None:
        return None
    if len(allowed) == 1:
        return next(iter(allowed))
    present = (await daemon.call(Show, seal=seal)).seal.seqid
    if present not in allowed:
        details = {"seqid": present, "allowed": sorted(allowed)}
        raise Refusal("stale-seqid", f"the seal's seqid is {present} now", details)
    return present
