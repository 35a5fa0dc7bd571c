"""What one principal can use up of the HTTP service: the second table of docs/limits.md."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgspec

from sealsvc_api.http_protocol import BODY_TIMEOUT, HEAD_TIMEOUT, SEND_TIMEOUT
from sealsvc_api.inputs import MAX_BODY
from sealsvc_api.principals import Entry
from sealsvc_api.session import LOGINS_PER_SECOND
from sealsvc_api.sessions import MOST
from sealsvc_api.settings import Settings

_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Settings)}
_RESERVE = "`limit-reached` (429), but for principals who may recall: an eighth is theirs"
_RATE = next(
    field.default for field in msgspec.structs.fields(Entry) if field.name == "requests_per_second"
)

# Resource, option of sealsvc-api or key of the principals file, most, what happens to a client at
# the limit, what the other clients notice.
TABLE = (
    ("sessions of a token", "-", MOST, "its oldest session ends", "nothing"),
    (
        "logins with tokens that are not known, in a second",
        "-",
        f"{LOGINS_PER_SECOND:g}",
        "`limit-reached` (429)",
        "nothing: known tokens log in meanwhile",
    ),
    (
        "connections altogether",
        "--max-connections",
        _DEFAULTS["max_connections"],
        "a new one takes the place of the one that has let the server wait longest, or is closed",
        "the same; /healthz and /readyz are served on a listener of their own by `--probes`",
    ),
    (
        "seconds for a request's line and header fields, and for a TLS handshake",
        "-",
        f"{HEAD_TIMEOUT:g}",
        "the connection is closed",
        "nothing",
    ),
    (
        "seconds for a request's body",
        "-",
        f"{BODY_TIMEOUT:g}",
        "the connection is closed",
        "nothing",
    ),
    ("bytes of a body", "-", MAX_BODY, "`too-large` (413)", "nothing"),
    (
        "seconds for which a client may leave an answer unread",
        "-",
        f"{SEND_TIMEOUT:g}",
        "the connection is aborted",
        "nothing",
    ),
    (
        "requests of a principal in a second",
        "`requests_per_second`",
        f"{_RATE:g}",
        "`limit-reached` (429) with Retry-After; the RateLimit header fields say what is left",
        "nothing",
    ),
    (
        "requests in flight altogether",
        "--max-connections less --max-listeners",
        _DEFAULTS["max_connections"] - _DEFAULTS["max_listeners"],
        "`limit-reached` (429), but for principals who may recall: an eighth is theirs",
        "the same",
    ),
    (
        "requests of a principal in flight",
        "-",
        _DEFAULTS["requests_each"],
        "`limit-reached` (429)",
        "nothing",
    ),
    (
        "listeners (event streams and WebSockets) altogether; at most 3 of 4 connections",
        "--max-listeners",
        _DEFAULTS["max_listeners"],
        _RESERVE,
        "the same",
    ),
    (
        "listeners of a principal",
        "-",
        _DEFAULTS["listeners_each"],
        "`limit-reached` (429)",
        "nothing",
    ),
    (
        "events that a listener has not read",
        "-",
        f"{_DEFAULTS['events_queue']}, or {_DEFAULTS['events_bytes']} bytes",
        "the stream ends; it goes on from Last-Event-ID",
        "nothing",
    ),
    (
        "seconds that a stream lives",
        "-",
        f"{_DEFAULTS['stream_life']:g}",
        "the stream ends; it goes on from Last-Event-ID",
        "nothing",
    ),
)


def section() -> str:
    """The end of docs/limits.md."""
    lines = [
        "",
        "## HTTP",
        "",
        "The same for `sealsvc-api`, by principal (docs/security.md).",
        "",
        "| resource | option, or key for a principal | most | at the limit | others notice |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in TABLE]
    return "\n".join(lines) + "\n"
