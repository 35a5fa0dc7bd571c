from __future__ import annotations

import httpx
import msgspec
import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import Preparation, Requirements
from sealsvc.protocol.seals import Extents, Grant, HolderSpec, List, Mapped, RecallSeals, Return
from sealsvc_api.etags import none_match, required_seqids
from tests.api.fake_daemon import FakeDaemon

BODY = {"path": "/srv/a", "holder": {"pid": 7}}
NOBODY = "f" * 24


@pytest.fixture
def seal(http: httpx.Client) -> str:
    return str(http.post("/v1/seals", json=BODY).json()["id"])


def test_grant(http: httpx.Client, daemon: FakeDaemon) -> None:
    answer = http.post("/v1/seals", json=BODY)
    seal = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/seals/{seal['id']}"
    assert answer.headers["etag"] == '"1"'
    assert http.get(answer.headers["location"]).json() == seal
    (asked,) = daemon.asked(Grant)
    wanted = Grant(id=asked.id, path="/srv/a", holder=HolderSpec(pid=7), principal="root")
    assert asked == wanted


def test_every_field_of_a_grant_arrives(http: httpx.Client, daemon: FakeDaemon) -> None:
    fields = {
        "path": "/srv/b",
        "offset": 4096,
        "length": 8192,
        "iomode": "read",
        "kind": "shared",
        "conflict": "refuse",
        "fence": "signal",
        "grace": 2.5,
        "ttl": 60.0,
        "tag": "t",
        "require": {"map_sync": True, "populate": False, "pmd": False},
        "prepare": ["unshare"],
        "only": {},
        "principal": "root",
        "holder": {"pid": 7},
    }
    body = {k: v for k, v in fields.items() if k not in ("only", "principal")}
    headers = {"Idempotency-Key": "again"}
    assert http.post("/v1/seals", json=body, headers=headers).status_code == 201
    (asked,) = daemon.asked(Grant)
    sent = msgspec.to_builtins(asked)
    assert {name: sent[name] for name in sent if name not in ("id", "v", "op", "key")} == fields
    assert len(asked.key) == 48
    assert asked.require == Requirements(map_sync=True)
    assert asked.prepare == [Preparation.UNSHARE]


def test_the_holders_descriptor_may_stand_for_the_path(http: httpx.Client) -> None:
    assert http.post("/v1/seals", json={"holder": {"pid": 7, "fd": 3}}).status_code == 201


def test_pages(http: httpx.Client) -> None:
    ids = [http.post("/v1/seals", json=BODY).json()["id"] for _ in range(5)]
    seen: list[str] = []
    after: dict[str, str] = {}
    for _ in range(3):
        page = http.get("/v1/seals", params={"limit": 2, **after}).json()
        seen += [seal["id"] for seal in page["seals"]]
        after = {"after": page["next"]}
    assert seen == ids
    assert page["next"] is None


def test_filters(http: httpx.Client, daemon: FakeDaemon, seal: str) -> None:
    query = {"path": "/srv/a", "state": "active", "pid": "4242"}
    assert [s["id"] for s in http.get("/v1/seals", params=query).json()["seals"]] == [seal]
    assert http.get("/v1/seals", params={"path": "/srv/other"}).json()["seals"] == []
    assert daemon.asked(List)[0].pid == 4242


def test_a_path_of_digits_or_null_stays_text(http: httpx.Client, daemon: FakeDaemon) -> None:
    for path in ("1234", "null", "true"):
        assert http.get("/v1/seals", params={"path": path}).status_code == 200
        assert daemon.asked(List)[-1].path == path


@pytest.mark.parametrize(
    ("header", "status"),
    [('"1"', 304), ('W/"1"', 304), ("*", 304), ('"8", "1"', 304), ('"2"', 200), ('"x"', 200)],
)
def test_if_none_match(http: httpx.Client, seal: str, header: str, status: int) -> None:
    answer = http.get(f"/v1/seals/{seal}", headers={"If-None-Match": header})
    assert answer.status_code == status
    assert answer.headers["etag"] == '"1"'
    assert (answer.content == b"") is (status == 304)


IF_MATCH = pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 200),
        ("*", 200),
        ('"1"', 200),
        ('"4", "1"', 200),
        ('"2"', 412),
        ('W/"1"', 412),
        ('"other"', 412),
        ('"4", "5"', 412),
        ("1", 400),
    ],
)


@IF_MATCH
def test_if_match(
    http: httpx.Client, daemon: FakeDaemon, seal: str, header: str | None, status: int
) -> None:
    headers = {} if header is None else {"If-Match": header}
    answer = http.delete(f"/v1/seals/{seal}", headers=headers)
    assert answer.status_code == status
    assert (seal in daemon.seals) is (status != 200)
    if status == 200:
        assert answer.json()["state"] == "returned"
        assert answer.headers["etag"] == '"2"'
    if header == '"1"':
        assert daemon.asked(Return)[0].seqid == 1


@IF_MATCH
def test_a_recall_of_a_seal_if_it_matches(
    http: httpx.Client, daemon: FakeDaemon, seal: str, header: str | None, status: int
) -> None:
    headers = {} if header is None else {"If-Match": header}
    answer = http.post("/v1/recalls", json={"seal": seal, "wait": True}, headers=headers)
    assert answer.status_code == status
    if status == 412:
        assert answer.json()["code"] == "stale-seqid"
    asked = daemon.asked(RecallSeals)
    assert {one.seqid for one in asked if status == 200} <= {None, 1}
    # The service itself compares, where nothing can change in between.
    if header in ('"1"', '"2"'):
        assert [one.seqid for one in asked] == [int(header.strip('"'))]


@pytest.mark.parametrize("scope", [{"path": "/srv/a"}, {"pid": 7}, {"all": True}])
@pytest.mark.parametrize("header", ['"1"', "*"])
def test_a_wider_recall_has_no_etag(
    http: httpx.Client, daemon: FakeDaemon, seal: str, scope: dict[str, object], header: str
) -> None:
    answer = http.post("/v1/recalls", json=scope, headers={"If-Match": header})
    told = answer.json()
    assert (answer.status_code, told["code"]) == (400, "bad-request")
    assert told["details"] == {"field": "If-Match"}
    assert "name it by `seal`" in told["detail"]
    assert "leave If-Match out" in told["detail"]
    assert not daemon.asked(RecallSeals)


def test_a_recall_of_a_seal_that_is_not_there(http: httpx.Client) -> None:
    answer = http.post("/v1/recalls", json={"seal": NOBODY}, headers={"If-Match": '"1"'})
    assert answer.json()["code"] == "no-such-seal"


def test_a_seqid_belongs_into_if_match(http: httpx.Client, seal: str) -> None:
    assert http.post("/v1/recalls", json={"seal": seal, "seqid": 1}).status_code == 400


def test_entity_tags() -> None:
    assert none_match(None, 1)
    assert required_seqids('"1","2"') == frozenset({1, 2})
    assert required_seqids('W/"1"') == frozenset()
    for bad in ('"1" "2"', "x", '"1'):
        with pytest.raises(Refusal, match="entity tags"):
            required_seqids(bad)


def test_extents(http: httpx.Client, daemon: FakeDaemon, seal: str) -> None:
    answer = http.get(f"/v1/seals/{seal}/extents", params={"start": 2, "limit": 3})
    assert answer.json()["total"] == 1
    (asked,) = daemon.asked(Extents)
    assert (asked.start, asked.limit) == (2, 3)


def test_validation(http: httpx.Client, daemon: FakeDaemon, seal: str) -> None:
    where = f"/v1/seals/{seal}/validation"
    assert http.post(where).json()["pfn_checked"] == 16384
    assert http.post(where, json={"address": 4096}, headers={"If-Match": '"1"'}).status_code == 200
    first, second = daemon.asked(Mapped)
    assert (first.seal, first.address, first.seqid) == (seal, None, None)
    assert (second.address, second.seqid) == (4096, 1)
    assert http.post(where, json={"address": 0}).status_code == 400
    assert http.post(f"/v1/seals/{NOBODY}/validation").json()["code"] == "no-such-seal"


@pytest.mark.parametrize("path", ["", "/extents"])
def test_a_seal_that_is_not_there(http: httpx.Client, path: str) -> None:
    assert http.get(f"/v1/seals/{NOBODY}{path}").json()["code"] == "no-such-seal"
    assert http.delete(f"/v1/seals/{NOBODY}").status_code == 404


@pytest.mark.parametrize(("wait", "status"), [(True, 200), (False, 202)])
def test_recalls(http: httpx.Client, daemon: FakeDaemon, wait: bool, status: int) -> None:
    body = {"path": "/srv/a", "range": {"offset": 0, "length": 4096}, "wait": wait, "grace": 1.0}
    answer = http.post("/v1/recalls", json=body)
    assert answer.status_code == status
    assert answer.json()["recalled"]
    (asked,) = daemon.asked(RecallSeals)
    assert (asked.wait, asked.range.length, asked.grace) == (wait, 4096, 1.0)


def test_audits_filesystems_status(http: httpx.Client) -> None:
    assert http.post("/v1/audits").json()["checked"] == 1
    assert http.get("/v1/filesystems").json()["filesystems"][0]["type"] == "xfs"
    assert http.get("/v1/status").json()["protocol"] == 1
