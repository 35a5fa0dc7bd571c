"""Entity tags: a seal's seqid in quotes, since it goes up with every change of state."""

from __future__ import annotations

import re

from sealsvc.core.errors import Refusal

_TAG = re.compile(r'\s*(W/)?"([\x21\x23-\x7e\x80-\xff]*)"\s*(?:,|$)')


def etag(seqid: int) -> str:
    return f'"{seqid}"'


def _tags(header: str, name: str) -> list[tuple[bool, str]]:
    """(weak, opaque) for each tag of a list in the form of RFC 9110 section 8.8.3."""
    tags: list[tuple[bool, str]] = []
    position = 0
    while position < len(header):
        match = _TAG.match(header, position)
        if match is None:
            message = f'{name}: want entity tags such as "3", or *'
            raise Refusal("bad-request", message, {"field": name})
        tags.append((match[1] is not None, match[2]))
        position = match.end()
    return tags


def none_match(header: str | None, seqid: int) -> bool:
    """Whether If-None-Match lets a GET go on; weak comparison."""
    if header is None:
        return True
    if header.strip() == "*":
        return False
    return all(opaque != str(seqid) for _, opaque in _tags(header, "If-None-Match"))


def required_seqids(header: str | None) -> frozenset[int] | None:
    """The seqids that If-Match allows (None: any); strong comparison, so weak tags allow none.
    A tag that is not ours can match no seal: it is left out, and an empty set matches nothing."""
    if header is None or header.strip() == "*":
        return None
    strong = (opaque for weak, opaque in _tags(header, "If-Match") if not weak)
    return frozenset(int(opaque) for opaque in strong if re.fullmatch(r"\d{1,18}", opaque))
