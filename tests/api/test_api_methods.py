"""HEAD wherever GET is, and Allow for every other method."""

from __future__ import annotations

import re
import socket
from typing import Any

import httpx
import pytest

from sealsvc_api import examples, integrity
from sealsvc_api.app import build_app
from sealsvc_api.settings import Settings
from tests.api.conftest import TOKEN, Api
from tests.api.fake_daemon import FakeDaemon
from tests.support.waiting import PATIENCE, until

DOCUMENT = build_app(Settings()).openapi()
GETS = sorted(path for path, methods in DOCUMENT["paths"].items() if "get" in methods)
# What the description does not have.
PAGES = ["/", "/dashboard/", "/dashboard/app.js", "/dashboard/none", "/v1/openapi.json"]
# The fake daemon's job is no copy, and nothing is exported.
ABSENT = {"/v1/copies/{job}", "/v1/exports/{name}"}
# These differ from one answer to the next. (The service tells how long it has been up, so that
# lengths do, too; where they do not: test_the_length_is_that_of_the_content.)
OF_THE_MOMENT = {"date", "x-request-id", "ratelimit", "content-length"}
SEAL = f"{1:024x}"  # the first of the fake daemon


def url(path: str) -> str:
    """With the examples of its parameters."""
    query = "?path=/srv/a" if path in ("/v1/coverage", "/v1/integrity/ability") else ""
    given: dict[str, Any] = {
        "seal": SEAL,
        "key": examples.FILE.key,
        "pid": examples.HOLDER.pid,
        "job": examples.JOB.id,
        "alarm": examples.ALARM.id,
        "attachment": integrity.ATTACHMENT.id,
        "name": examples.EXPORT.name,
    }
    return re.sub(r"\{(\w+)\}", lambda found: str(given[found[1]]), path) + query


def told(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in OF_THE_MOMENT}


@pytest.fixture
def sealed(http: httpx.Client) -> httpx.Client:
    made = http.post("/v1/seals", json={"path": "/srv/a", "holder": {"pid": 1}})
    assert made.json()["id"] == SEAL
    return http


@pytest.mark.parametrize("path", [p for p in GETS if p != "/v1/events"] + PAGES)
def test_head_is_get_without_the_content(sealed: httpx.Client, path: str) -> None:
    got, head = sealed.get(url(path)), sealed.head(url(path))
    absent = "none" in path or path in ABSENT
    assert got.status_code == (404 if absent else 307 if path == "/" else 200), got.text
    assert head.status_code == got.status_code
    assert told(head) == told(got)
    assert ("content-length" in head.headers) is ("content-length" in got.headers)
    assert head.content == b""


@pytest.mark.parametrize("path", ["/v1/seals", f"/v1/seals/{SEAL}", "/v1/openapi.json", "/healthz"])
def test_the_length_is_that_of_the_content(sealed: httpx.Client, path: str) -> None:
    assert int(sealed.head(path).headers["content-length"]) == len(sealed.get(path).content) > 0


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/seals/" + "f" * 24, 404),
        ("/v1/seals?limit=0", 400),
        ("/v1/nothing", 404),
        ("/v1/audits", 405),
    ],
)
def test_a_refusal_has_no_content_either(http: httpx.Client, path: str, status: int) -> None:
    got, head = http.get(path), http.head(path)
    assert head.status_code == got.status_code == status
    assert told(head) == told(got)
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.content == b""


def test_head_is_conditional_as_get_is(sealed: httpx.Client) -> None:
    where = f"/v1/seals/{SEAL}"
    assert sealed.head(where).headers["etag"] == '"1"'
    assert sealed.head(where, headers={"If-None-Match": '"1"'}).status_code == 304
    assert sealed.head(where, headers={"If-None-Match": '"2"'}).status_code == 200


def test_head_opens_nothing_that_get_does_not(api: Api) -> None:
    with api.client("unknown") as http:
        assert http.head("/v1/seals").status_code == 401


def said(api: Api, method: str, path: str) -> bytes:
    """All that comes until the other side hangs up."""
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    with socket.create_connection(("127.0.0.1", api.port), timeout=PATIENCE) as raw:
        raw.sendall(f"{request}Connection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: raw.recv(65536), b""))


@pytest.mark.parametrize(
    "path", ["/v1/status", "/metrics", "/dashboard/", "/v1/events", "/v1/nothing"]
)
def test_nothing_comes_behind_the_fields(api: Api, path: str) -> None:
    assert said(api, "HEAD", path).endswith(b"\r\n\r\n")
    assert said(api, "HEAD", path).count(b"\r\n\r\n") == 1


def test_a_stream_of_events_is_over_at_once(api: Api, daemon: FakeDaemon) -> None:
    daemon.emit()
    with api.client() as http:
        for query in ("", "?since=0"):
            head = http.head(f"/v1/events{query}")
            assert head.status_code == 200
            assert head.headers["content-type"].startswith("text/event-stream")
            assert head.headers["cache-control"] == "no-store"
        # The connection is good for more, and nobody listens any more.
        assert http.get("/healthz").status_code == 200
        assert http.head("/v1/events?since=-1").status_code == 400
    until(lambda: len(api.app.state.feed) == 0)
    until(lambda: not api.server.server_state.tasks)


def test_the_description_does_not_list_it(http: httpx.Client) -> None:
    document = http.get("/v1/openapi.json").json()
    assert all("head" not in methods for methods in document["paths"].values())
    assert "HEAD is served wherever GET is" in document["info"]["description"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/seals", "GET, HEAD, POST"),
        (f"/v1/seals/{SEAL}", "GET, HEAD, DELETE"),
        (f"/v1/seals/{SEAL}/renewal", "POST"),
        ("/v1/session", "GET, HEAD, POST, DELETE"),
        ("/v1/openapi.json", "GET, HEAD"),
        ("/healthz", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/dashboard/", "GET, HEAD"),
    ],
)
def test_another_method_is_told_which_there_are(
    http: httpx.Client, path: str, methods: str
) -> None:
    answer = http.put(path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == methods


def test_the_methods_are_those_of_the_description(http: httpx.Client) -> None:
    for path, described in DOCUMENT["paths"].items():
        methods = {method.upper() for method in described}
        methods |= {"HEAD"} if "GET" in methods else set()
        assert set(http.put(url(path)).headers["allow"].split(", ")) == methods, path
