"""A client of the REST API with the manner of `client.Client`: `sealctl --url` speaks through it,
so that every command says the same as over the socket. What needs a descriptor or a holder's
connection (hold, redeem) is not to be had over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from sealsvc.client.datagrams import Reply
from sealsvc.client.socket import Client
from sealsvc.core.errors import TABLE, Refusal
from sealsvc.protocol import admin, history
from sealsvc.protocol import integrity as integrity
from sealsvc.protocol.copies import CopyTrust, StartCopy
from sealsvc.protocol.events import Event, Watch, Watching
from sealsvc.protocol.exports import StopExport
from sealsvc.protocol.messages import AnyRequest, Push, Result
from sealsvc.protocol.relocation import Relocate
from sealsvc.protocol.seals import (
    Downgrade,
    Extents,
    List,
    Mapped,
    RecallSeals,
    Renew,
    Return,
    Show,
)
from sealsvc.protocol.system import Audit, Filesystems, Status

# Request -> method and path; the fields that are in the path are not in the query or the body.
_ROUTES: dict[type, tuple[str, str]] = {
    Show: ("GET", "/v1/seals/{seal}"),
    List: ("GET", "/v1/seals"),
    Extents: ("GET", "/v1/seals/{seal}/extents"),
    Filesystems: ("GET", "/v1/filesystems"),
    Status: ("GET", "/v1/status"),
    admin.Files: ("GET", "/v1/files"),
    admin.Holders: ("GET", "/v1/holders"),
    admin.Conflicts: ("GET", "/v1/conflicts"),
    admin.Alarms: ("GET", "/v1/alarms"),
    admin.AcknowledgeAlarm: ("POST", "/v1/alarms/{alarm}/acknowledgement"),
    admin.Measures: ("GET", "/v1/measures"),
    admin.Coverage: ("GET", "/v1/coverage"),
    admin.ShowPolicy: ("GET", "/v1/policy"),
    admin.CheckPolicy: ("POST", "/v1/policy/validation"),
    admin.ReloadPolicy: ("POST", "/v1/policy/reload"),
    StartCopy: ("POST", "/v1/copies"),
    CopyTrust: ("GET", "/v1/copy-trust"),
    Relocate: ("POST", "/v1/relocations"),
    StopExport: ("DELETE", "/v1/exports/{name}"),
    admin.StartJob: ("POST", "/v1/jobs"),
    admin.Jobs: ("GET", "/v1/jobs"),
    admin.ShowJob: ("GET", "/v1/jobs/{job}"),
    admin.CancelJob: ("DELETE", "/v1/jobs/{job}"),
    history.Steps: ("GET", "/v1/seals/{seal}/history"),
    history.MapChanges: ("GET", "/v1/seals/{seal}/changes"),
    history.History: ("GET", "/v1/history"),
    history.PastConflicts: ("GET", "/v1/history/conflicts"),
    history.Trail: ("GET", "/v1/trail"),
    history.VerifyTrail: ("POST", "/v1/trail/verification"),
    integrity.PiProfiles: ("GET", "/v1/integrity/profiles"),
    integrity.PiQuery: ("GET", "/v1/integrity/ability"),
    integrity.PiAttachments: ("GET", "/v1/integrity/attachments"),
    integrity.PiAttach: ("POST", "/v1/integrity/attachments"),
    integrity.PiDetach: ("DELETE", "/v1/integrity/attachments/{attachment}"),
    integrity.PiVerify: ("POST", "/v1/integrity/attachments/{attachment}/verification"),
    integrity.PiScrub: ("POST", "/v1/integrity/attachments/{attachment}/scrub"),
    integrity.PiBless: ("POST", "/v1/integrity/attachments/{attachment}/blessing"),
    integrity.PiErrors: ("GET", "/v1/integrity/errors"),
    Audit: ("POST", "/v1/audits"),
    RecallSeals: ("POST", "/v1/recalls"),
    Mapped: ("POST", "/v1/seals/{seal}/validation"),
    Renew: ("POST", "/v1/seals/{seal}/renewal"),
    Downgrade: ("POST", "/v1/seals/{seal}/downgrade"),
    Return: ("POST", "/v1/seals/{seal}/return"),
}
TOKEN_VARIABLE = "SEALSVC_TOKEN"
TRACE_VARIABLE = "TRACEPARENT"  # as OpenTelemetry hands a trace to a command

_decode = msgspec.json.Decoder(Result).decode


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM: the authorities of the API's certificate (None: the system's), and what to show
    of our own (`key` None: it is in `cert`)."""

    cacert: str | None = None
    cert: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext:
        """Raises Refusal bad-request for files that are none of these."""
        try:
            made = ssl.create_default_context(cafile=self.cacert)
            if self.cert is not None:
                made.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(filter(None, (self.cacert, self.cert, self.key)))
            raise Refusal("bad-request", f"{files}: {error}") from None
        return made


class RemoteClient(Client):
    """`url` is http://HOST:PORT, https://HOST:PORT, and the token is in SEALSVC_TOKEN: arguments
    can be read by everybody, an environment by its owner alone."""

    def __init__(self, url: str, timeout: float | None = 60.0, tls: Tls | None = None) -> None:
        self.path, self.timeout, self._tls = url, timeout, tls or Tls()
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refusal("bad-request", f"{url!r} is not the URL of a sealsvc-api")
        self._parts = parts
        self._stream: http.client.HTTPResponse | None = None
        self._connection = self._connect(timeout)

    def _connect(self, timeout: float | None) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            context = self._tls.context()
            return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        return http.client.HTTPConnection(host, port, timeout=timeout)

    def fileno(self) -> int:
        """-1: there is no descriptor to poll."""
        return -1

    def close(self) -> None:
        """Close the connection to the API."""
        self._connection.close()
        if self._stream is not None:
            self._stream.close()

    def call(
        self,
        kind: type[AnyRequest],
        /,
        fds: Sequence[int] = (),
        timeout: float | None = None,  # noqa: ARG002 (the interface)
        **fields: Any,
    ) -> Reply:
        """As Client.call, by the route of the REST API for this message. Its timeout is that of the
        client. Raises Refusal `unknown-operation` for what has no route."""
        if isinstance(wanted := fields.pop("wanted", None), history.SealFilter):
            fields |= msgspec.structs.asdict(wanted)
        unsaid = (None, False, "")
        given = {n: v for n, v in fields.items() if not any(v is nothing for nothing in unsaid)}
        if kind is Watch:
            return Reply(self._watch(given.get("since")))
        if kind not in _ROUTES or fds:
            message = f"{kind.__name__} is not to be had over HTTP: use the control socket"
            raise Refusal("unknown-operation", message)
        method, template = _ROUTES[kind]
        path = template.format(**given)
        rest = {name: given[name] for name in given if f"{{{name}}}" not in template}
        headers = {}
        if (seqid := rest.pop("seqid", None)) is not None:
            headers["If-Match"] = f'"{seqid}"'
        if key := rest.pop("key", None):
            headers["Idempotency-Key"] = key
        if method != "POST" and rest:
            path += "?" + urlencode({n: "true" if v is True else v for n, v in rest.items()})
        body = msgspec.json.encode(rest) if method == "POST" else None
        answer = self._request(self._connection, method, path, body, headers)
        return Reply(_decode(answer.read()))

    def _request(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        headers: dict[str, str],
    ) -> http.client.HTTPResponse:
        if token := os.environ.get(TOKEN_VARIABLE):
            headers["Authorization"] = f"Bearer {token}"
        if trace := os.environ.get(TRACE_VARIABLE):
            headers["traceparent"] = trace
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, self._parts.path.rstrip("/") + path, body, headers)
            answer = connection.getresponse()
        except TimeoutError as error:
            raise TimeoutError(f"no answer from {self.path} in time") from error
        except (OSError, http.client.HTTPException) as error:
            raise Refusal(
                "service-unavailable", f"no API answers on {self.path}: {error}"
            ) from None
        if answer.status >= 400:
            raise _refusal(answer)
        return answer

    # Events

    def _watch(self, since: int | None) -> Watching:
        connection = self._connect(None)
        path = "/v1/events" + ("" if since is None else f"?since={since}")
        self._stream = self._request(connection, "GET", path, None, {})
        run, _, seq = self._opening().rpartition(".")
        return Watching(seq=int(seq or 0), gap=False, run=run)

    def _opening(self) -> str:
        for name, value in self._lines():
            if name == "id":
                return value
        return "0"

    def _lines(self) -> Iterator[tuple[str, str]]:
        assert self._stream is not None
        for line in self._stream:
            name, _, value = line.decode().rstrip("\r\n").partition(": ")
            yield name, value

    def pushes(self, timeout: float | None = None) -> Iterator[Push]:  # noqa: ARG002
        """Events alone: recalls go to those who hold seals, over the socket."""
        if self._stream is None:
            return
        for name, value in self._lines():
            if name == "data":
                yield msgspec.json.decode(value.encode(), type=Event)


def _refusal(answer: http.client.HTTPResponse) -> Refusal:
    try:
        told = json.loads(answer.read())
        code = told["code"] if told["code"] in TABLE else "internal"
        return Refusal(code, told["detail"], told.get("details", {}), told.get("retry_after"))
    except (ValueError, KeyError, TypeError):
        return Refusal("internal", f"the API answered {answer.status} {answer.reason}")
