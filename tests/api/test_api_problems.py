from __future__ import annotations

import errno
from typing import Any

import httpx
import pytest

from sealsvc.core.errors import TABLE
from sealsvc_api.inputs import MAX_BODY
from tests.api.conftest import Api
from tests.api.fake_daemon import FakeDaemon

HOLDER = {"pid": 1}


def check(answer: httpx.Response, code: str, status: int | None = None) -> dict[str, Any]:
    told: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (told["code"], told["type"]) == (code, f"urn:sealsvc:error:{code}")
    assert told["status"] == answer.status_code == (status or TABLE[code].status)
    return told


@pytest.mark.parametrize("code", TABLE)
def test_every_row_of_the_error_table(http: httpx.Client, code: str) -> None:
    answer = http.post("/v1/seals", json={"path": f"/refuse/{code}", "holder": HOLDER})
    told, row = check(answer, code), TABLE[code]
    assert getattr(errno, told["errno"]) == row.errno
    assert (told["nfs"] or "", told["retryable"]) == (row.nfs, row.retryable)
    assert (told["title"], told["advice"]) == (row.title, row.advice)
    assert told["details"] == {"path": f"/refuse/{code}"}
    assert told["detail"] == f"refused with {code}"
    assert told["instance"] == "/v1/seals"
    assert answer.headers.get("retry-after") == ("2" if row.retryable else None)


def test_the_errno_name_is_the_one_the_kernel_uses(http: httpx.Client) -> None:
    path = "/refuse/filesystem-unsupported"
    answer = http.post("/v1/seals", json={"path": path, "holder": HOLDER})
    assert answer.json()["errno"] == "EOPNOTSUPP"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"path": "/a"}, "holder"),
        ({"path": "/a", "holder": {}}, "holder.pid"),
        ({"path": "/a", "holder": {"pid": 0}}, "holder.pid"),
        ({"path": "/a", "holder": {"pid": 1, "pidfd": True}}, "holder"),
        ({"path": "/a", "holder": HOLDER, "surprise": 1}, ""),
        ({"path": "/a", "holder": HOLDER, "id": 7}, ""),
        ({"path": "/a", "holder": HOLDER, "v": 1}, ""),
        ({"path": "/a", "holder": HOLDER, "offset": -1}, "offset"),
        ({"path": "/a", "holder": HOLDER, "kind": "odd"}, "kind"),
        ({"path": "/a", "holder": HOLDER, "prepare": ["dance"]}, "prepare[0]"),
        ({"holder": HOLDER}, "path"),
        ([], ""),
    ],
)
def test_a_malformed_grant_names_the_field(
    http: httpx.Client, daemon: FakeDaemon, body: object, field: str
) -> None:
    before = len(daemon.requests)
    told = check(http.post("/v1/seals", json=body), "bad-request")
    assert told["details"] == {"field": field}
    assert len(daemon.requests) == before


def test_a_missing_holder_is_explained(http: httpx.Client) -> None:
    told = check(http.post("/v1/seals", json={"path": "/a"}), "bad-request")
    assert "REST caller cannot hold" in told["detail"]


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b'{"path": "\\ud800"}', b"[" * 5000])
def test_bytes_that_are_not_json(http: httpx.Client, raw: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    check(http.post("/v1/seals", content=raw, headers=headers), "bad-request")


def test_another_media_type(http: httpx.Client) -> None:
    check(http.post("/v1/seals", data={"path": "/a"}), "bad-request")


def test_a_body_above_the_limit(http: httpx.Client) -> None:
    body = {"path": "/a", "holder": HOLDER, "prepare": ["align"] * MAX_BODY}
    check(http.post("/v1/seals", json=body), "too-large")


@pytest.mark.parametrize(
    "url",
    [
        "/v1/seals?surprise=1",
        "/v1/seals?limit=0",
        "/v1/seals?limit=x",
        "/v1/seals?limit=1&limit=2",
        "/v1/seals?state=odd",
        "/v1/seals?after=short",
        "/v1/seals?pid=-5",
        "/v1/seals?uid=1e3",
        "/v1/seals?limit=1.0",
        "/v1/history?pid=0",
        "/v1/history?part=xyz",
        "/v1/seals/nonsense",
        "/v1/seals/" + "0" * 24 + "?surprise=1",
        "/v1/seals/" + "0" * 24 + "/extents?start=-1",
        "/v1/status?surprise=1",
        "/v1/filesystems?surprise=1",
        "/v1/events?since=-1",
        "/healthz?surprise=1",
    ],
)
def test_malformed_queries(http: httpx.Client, url: str) -> None:
    check(http.get(url), "bad-request")


def test_the_dashboard_without_its_slash(http: httpx.Client) -> None:
    answer = http.get("/dashboard")
    assert (answer.status_code, answer.headers["location"]) == (307, "/dashboard/")


def test_routes_that_do_not_exist(http: httpx.Client) -> None:
    check(http.get("/v2/seals"), "unknown-operation", 404)
    check(http.get("/v1/seals/"), "unknown-operation", 404)
    answer = http.put("/v1/seals")
    check(answer, "unknown-operation", 405)
    assert answer.headers["allow"]


def test_no_service(lonely: Api) -> None:
    with lonely.client() as http:
        for path in ("/v1/status", "/v1/seals", "/v1/events", "/readyz"):
            answer = http.get(path)
            check(answer, "service-unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert http.get("/healthz").json() == {"status": "alive"}


def test_a_service_that_goes_away_in_the_middle(http: httpx.Client) -> None:
    answer = http.post("/v1/seals", json={"path": "/drop", "holder": HOLDER})
    check(answer, "service-unavailable")


def test_a_defect_is_not_shown(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.app.state, "feed", None)
    with api.client() as http:
        told = check(http.get("/v1/events"), "internal")
    assert "NoneType" not in str(told)
