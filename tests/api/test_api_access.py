"""Who may do what: the table in docs/security.md is the code's, and the running service's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sealsvc_api.access import ALLOWED, MEANS, UNSCOPED, Action, Caller, Role, lies_below
from sealsvc_api.app import build_app
from sealsvc_api.description import Application
from sealsvc_api.settings import Settings
from tests.api.conftest import Api, write_principals
from tests.api.fake_daemon import FakeDaemon

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- the table of access.py -->\n", "<!-- end -->\n"
SEAL, OTHERS = "0" * 23 + "1", "0" * 23 + "2"
IN, OUT = "/srv/pmem/volume-7.img", "/srv/other/secret"

PRINCIPALS: dict[str, dict[str, object]] = {
    str(role): {"role": str(role), "scopes": ["/"], "holders": ["*"], "token": f"t-{role}"}
    for role in Role
} | {
    f"{role}-in": {"role": str(role), "scopes": ["/srv/pmem"], "token": f"t-{role}-in"}
    for role in Role
}
NOBODY = "nobody"

# One request for each action, on what is in every scope. {own} is a seal of the principal's.
REQUESTS: dict[Action, tuple[str, str, object]] = {
    Action.SESSION: ("GET", "/v1/session", None),
    Action.STATUS: ("GET", "/v1/status", None),
    Action.METRICS: ("GET", "/metrics", None),
    Action.SEALS_READ: ("GET", "/v1/seals/{other}", None),
    Action.EVENTS: ("GET", "/v1/events?since=x", None),
    Action.FILESYSTEMS: ("GET", "/v1/filesystems", None),
    Action.JOBS_READ: ("GET", "/v1/jobs", None),
    Action.SEALS_GRANT: ("POST", "/v1/seals", {"path": IN, "holder": {"pid": 1}}),
    Action.SEALS_CHANGE_OWN: ("POST", "/v1/seals/{own}/renewal", {}),
    Action.SEALS_CHANGE: ("POST", "/v1/seals/{other}/renewal", {}),
    Action.ALARMS_ACKNOWLEDGE: ("POST", f"/v1/alarms/{'0' * 16}/acknowledgement", None),
    Action.RECALL: ("POST", "/v1/recalls", {"path": IN}),
    Action.RECALL_WIDE: ("POST", "/v1/recalls", {"all": True}),
    Action.JOBS_RUN: ("POST", "/v1/jobs", {"kind": "audit"}),
    Action.COPY: ("POST", "/v1/copies", {"source": IN, "destination": IN}),
    Action.EXPORTS_STOP: ("DELETE", "/v1/exports/disk", None),
    Action.POLICY_READ: ("GET", "/v1/policy", None),
    Action.POLICY_CHANGE: ("POST", "/v1/policy/reload", None),
    Action.TRAIL: ("GET", "/v1/trail", None),
}


def render() -> str:
    names = [str(role) for role in Role]
    lines = [
        f"| action | means | {' | '.join(names)} | confined to directories |",
        "| --- | --- |" + " --- |" * (len(names) + 1),
    ]
    for action in Action:
        cells = ["yes" if action in ALLOWED[role] else "no" for role in Role]
        confined = "no" if action in UNSCOPED else "there"
        lines.append(f"| `{action}` | {MEANS[action]} | {' | '.join(cells)} | {confined} |")
    return "\n".join(lines) + "\n"


def test_the_page_is_the_table() -> None:
    text = PAGE.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == render()


@pytest.fixture
def principals(tmp_path: Path) -> Path:
    return write_principals(tmp_path / "principals.toml", **PRINCIPALS)


@pytest.fixture
def http(api: Api) -> Iterator[httpx.Client]:
    with api.client(None) as client:
        yield client


def as_(name: str) -> dict[str, str]:
    return {} if name == NOBODY else {"Authorization": f"Bearer t-{name}"}


def own_seal(http: httpx.Client, name: str) -> str:
    body = {"path": IN, "holder": {"pid": 1}}
    return str(http.post("/v1/seals", json=body, headers=as_(name)).json().get("id", SEAL))


@pytest.mark.parametrize("name", [*PRINCIPALS, NOBODY])
def test_the_running_service_follows_the_table(
    http: httpx.Client, daemon: FakeDaemon, name: str
) -> None:
    other = own_seal(http, "admin")
    own = own_seal(http, name)
    role = None if name == NOBODY else Role(name.removesuffix("-in"))
    caller = role and Caller(name, role, ("/srv/pmem",) if "-in" in name else None, (), 1.0, "")
    for action, (method, path, body) in REQUESTS.items():
        where = path.format(own=own, other=other)
        before = len(daemon.requests)
        answer = http.request(method, where, json=body, headers=as_(name))
        if caller is None:
            assert answer.status_code == 401, action
            assert len(daemon.requests) == before
            continue
        code = answer.json()["code"] if answer.status_code >= 400 else ""
        if caller.may(action):
            # An event stream would not end: it is asked for with a mistake.
            assert code == ("bad-request" if action is Action.EVENTS else ""), (action, code)
        else:
            assert (answer.status_code, code) == (403, "denied"), action


def test_every_route_has_an_action_that_the_table_has() -> None:
    app = build_app(Settings())
    assert isinstance(app, Application)
    used = {
        operation["x-sealsvc-action"]
        for path in app.openapi()["paths"].values()
        for operation in path.values()
        if "x-sealsvc-action" in operation
    }
    # What depends on how wide a recall is, is asked for inside.
    inside = {Action.RECALL_WIDE}
    assert {Action(name) for name in used} == set(Action) - inside
    assert set(REQUESTS) == set(MEANS) == set(Action)


ORACLES = [
    ("GET", "/v1/seals?path={}", None, "no-such-file"),
    ("GET", "/v1/files?path={}", None, "no-such-file"),
    ("GET", "/v1/recalls?path={}", None, "no-such-file"),
    ("GET", "/v1/coverage?path={}", None, "no-such-file"),
    ("POST", "/v1/seals", {"path": "{}", "holder": {"pid": 1}}, "no-such-file"),
    ("POST", "/v1/claims", {"path": "{}"}, "no-such-file"),
    ("POST", "/v1/recalls", {"path": "{}"}, "no-such-file"),
]


@pytest.mark.parametrize(("method", "where", "body", "code"), ORACLES)
def test_what_lies_outside_and_what_is_not_there_are_told_alike(
    http: httpx.Client,
    daemon: FakeDaemon,
    method: str,
    where: str,
    body: dict[str, object] | None,
    code: str,
) -> None:
    """And the service is not even asked, so that not the time tells either."""
    answers = []
    before = len(daemon.requests)
    for path in (OUT, "/srv/other/nothing", "/srv/pmem/../other/secret", "/srv/pmem-2", "relative"):
        asked = body and {k: path if v == "{}" else v for k, v in body.items()}
        answer = http.request(method, where.format(path), json=asked, headers=as_("operator-in"))
        told = answer.json()
        text = json.dumps([told["code"], told["detail"], told["details"]]).replace(path, "PATH")
        answers.append((answer.status_code, text))
    assert len(set(map(str, answers))) == 1
    assert answers[0][1] == json.dumps([code, "PATH does not exist", {"path": "PATH"}])
    assert len(daemon.requests) == before


def test_a_seal_outside_the_scope_does_not_exist(http: httpx.Client, daemon: FakeDaemon) -> None:
    body = {"path": OUT, "holder": {"pid": 1}}
    hidden = http.post("/v1/seals", json=body, headers=as_("admin")).json()["id"]
    missing = "f" * 24
    for method, path in [
        ("GET", "/v1/seals/{}"),
        ("GET", "/v1/seals/{}/extents"),
        ("DELETE", "/v1/seals/{}"),
        ("POST", "/v1/seals/{}/renewal"),
        ("POST", "/v1/seals/{}/downgrade"),
        ("POST", "/v1/seals/{}/return"),
        ("POST", "/v1/seals/{}/validation"),
    ]:
        told = []
        for seal in (hidden, missing):
            answer = http.request(method, path.format(seal), headers=as_("operator-in"))
            text = answer.text.replace(seal, "SEAL")
            told.append((answer.status_code, text))
        assert told[0] == told[1], (method, path)
        assert told[0][0] == 404
    assert hidden in daemon.seals


def test_lists_and_conditions_are_confined(http: httpx.Client, daemon: FakeDaemon) -> None:
    """The filters that the service is given, and the conditions it checks itself."""
    from sealsvc.protocol.admin import Conflicts, Files, Holders
    from sealsvc.protocol.seals import Conditions, Grant, List

    http.get("/v1/seals", headers=as_("viewer-in"))
    for path in ("/v1/files", "/v1/holders", "/v1/conflicts"):
        assert http.get(path, headers=as_("viewer-in")).status_code == 200
    for kind in (List, Files, Holders, Conflicts):
        assert daemon.asked(kind)[-1].below == ["/srv/pmem"]
    own_seal(http, "sealer-in")
    # No holders are listed for it: it may name nobody's process.
    assert daemon.asked(Grant)[-1].only == Conditions(below=["/srv/pmem"], uids=[])
    own_seal(http, "sealer")
    assert daemon.asked(Grant)[-1].only == Conditions()


def test_a_sealer_changes_its_own_alone(http: httpx.Client) -> None:
    other, own = own_seal(http, "operator"), own_seal(http, "sealer")
    assert http.delete(f"/v1/seals/{own}", headers=as_("sealer")).status_code == 200
    assert http.delete(f"/v1/seals/{other}", headers=as_("sealer")).status_code == 403
    assert http.delete(f"/v1/seals/{other}", headers=as_("operator")).status_code == 200


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/a", True),
        ("/a/b", True),
        ("/ab", False),
        ("/a/../b", False),
        ("/a/./b", True),
        ("/a//b", True),
        ("//a", False),
        ("a", False),
        ("", False),
        ("/", False),
    ],
)
def test_below(path: str, inside: bool) -> None:
    assert lies_below(path, ("/a",)) is inside
    assert lies_below(path, ()) is False


def test_the_page_names_every_role() -> None:
    text = PAGE.read_text()
    assert all(re.search(rf"\b{role}\b", text) for role in Role)


if __name__ == "__main__":
    text = PAGE.read_text()
    head, tail = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    PAGE.write_text(head + render() + tail)
