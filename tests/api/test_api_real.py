"""REST against the real service, on a simulated system."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.admin import Redeem
from sealsvc.protocol.seals import Recall, Return, Show
from sealsvc.protocol.system import Simulate
from tests.api.conftest import TOKEN
from tests.api.running import PATIENCE, ROOT, Front, simulated, wait_for

MiB = 1 << 20
REGISTRY = '[registry]\ndirectory = "{}"\n'
CONFIG = '[policy]\nroots = ["/sim"]\nmax_grace = 300.0\n'


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("real")
    config = directory / "sealsvc.toml"
    config.write_text(CONFIG + REGISTRY.format(directory / "registry"))
    with simulated(directory, "--config", str(config)) as found:
        found.config = config  # type: ignore[attr-defined]
        yield found


@pytest.fixture
def http(there: Front) -> Iterator[httpx.Client]:
    with there.http() as client:
        yield client


@pytest.fixture
def control(there: Front) -> Iterator[Client]:
    with there.client() as client:
        yield client


@pytest.fixture
def file(control: Client, request: pytest.FixtureRequest) -> str:
    path = f"/sim/{request.node.name.split('[')[0]}"
    control.call(Simulate, action="create", path=path, size=4 * MiB)
    return path


def granted(http: httpx.Client, path: str, **terms: Any) -> dict[str, Any]:
    answer = http.post("/v1/seals", json={"path": path, "holder": {"pid": os.getpid()}, **terms})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def test_the_whole_life_of_a_seal(http: httpx.Client, file: str) -> None:
    seal = granted(http, file, ttl=600.0, kind="shared")
    where = f"/v1/seals/{seal['id']}"
    assert seal["owner"] == "admin"
    renewed = http.post(f"{where}/renewal", json={"ttl": 900.0})
    assert renewed.json()["ttl"] == 900.0
    stale = http.post(f"{where}/renewal", json={}, headers={"If-Match": '"999"'})
    assert (stale.status_code, stale.json()["code"]) == (412, "stale-seqid")
    tag = renewed.headers["etag"]
    down = http.post(f"{where}/downgrade", headers={"If-Match": tag})
    assert down.json()["iomode"] == "read"
    part = http.post(f"{where}/return", json={"range": {"offset": 0, "length": MiB}})
    assert part.json()["range"] == {"offset": MiB, "length": 3 * MiB}
    gone = http.delete(where, headers={"If-Match": part.headers["etag"]})
    assert gone.json()["state"] == "returned"
    assert http.get(where).json()["state"] == "returned"
    assert http.delete(where).json()["code"] == "no-such-seal"


def test_a_seal_that_has_moved_on_is_not_recalled(
    http: httpx.Client, control: Client, file: str
) -> None:
    seal = granted(http, file, kind="shared")
    first = {"If-Match": http.get(f"/v1/seals/{seal['id']}").headers["etag"]}
    body = {"seal": seal["id"]}
    assert http.post("/v1/recalls", json=body, headers=first).status_code == 202
    again = http.post("/v1/recalls", json=body, headers=first)
    assert (again.status_code, again.json()["code"]) == (412, "stale-seqid")
    assert control.call(Show, seal=seal["id"]).seal.state == "recalled"
    control.call(Return, seal=seal["id"])


def test_a_request_that_is_sent_again_is_not_carried_out_twice(
    there: Front, http: httpx.Client, file: str
) -> None:
    body = {"path": file, "holder": {"pid": os.getpid()}, "kind": "shared"}
    key = {"Idempotency-Key": "once"}
    first, again = (http.post("/v1/seals", json=body, headers=key).json()["id"] for _ in "12")
    assert first == again
    other = http.post("/v1/seals", json={**body, "tag": "x"}, headers=key)
    assert other.json()["code"] == "bad-request"
    assert other.json()["detail"] == "this idempotency key was used with a different request"
    with there.http("operator") as another:  # whose keys are its own
        assert another.post("/v1/seals", json=body, headers=key).json()["id"] != first


def test_files_holders_and_both_maps(http: httpx.Client, control: Client, file: str) -> None:
    seal = granted(http, file)
    (found,) = http.get("/v1/files", params={"path": file}).json()["files"]
    assert found["states"] == {"granted": 1}
    assert http.get(f"/v1/files/{found['key']}").json() == found
    assert http.get("/v1/files/1-2-3").json()["code"] == "no-such-file"
    holder = http.get(f"/v1/holders/{os.getpid()}").json()
    assert (holder["pid"], holder["alive"]) == (os.getpid(), True)
    where = f"/v1/seals/{seal['id']}/extents"
    recorded = http.get(where).json()["extents"]
    assert http.get(where, params={"now": "true"}).json()["extents"] == recorded
    control.call(Simulate, action="drift", path=file)
    assert http.get(where, params={"now": "true"}).json()["extents"] != recorded
    assert http.get(where).json()["extents"] == recorded


def test_search_and_filters(http: httpx.Client, file: str) -> None:
    seal = granted(http, file, tag="needle-7")
    for query in ({"search": "EEDLE"}, {"tag": "needle-7"}, {"path": file}):
        found = http.get("/v1/seals", params=query).json()["seals"]
        assert [s["id"] for s in found] == [seal["id"]], query
    for query in ({"search": "haystack"}, {"uid": 4711}, {"kind": "shared", "path": file}):
        assert http.get("/v1/seals", params=query).json()["seals"] == [], query


def test_the_next_page_is_linked(http: httpx.Client, control: Client, file: str) -> None:
    for _ in range(3):
        granted(http, file, kind="shared", tag="paged")
    seen: list[str] = []
    answer = http.get("/v1/seals", params={"tag": "paged", "limit": 2})
    seen += [seal["id"] for seal in answer.json()["seals"]]
    following = answer.links["next"]["url"]
    answer = http.get(following)
    seen += [seal["id"] for seal in answer.json()["seals"]]
    assert len(set(seen)) == 3
    assert "next" not in answer.links


def test_a_conflict_is_seen_while_it_waits(
    there: Front, http: httpx.Client, control: Client, file: str
) -> None:
    seal = granted(http, file, kind="shared", grace=300.0)

    def intrude() -> None:
        with there.client() as script:
            script.call(Simulate, action="conflict", path=file, length=4096, pid=1)

    intruder = threading.Thread(target=intrude)
    intruder.start()
    wait_for(lambda: bool(_waiting(http, file)))
    (found,) = _waiting(http, file)
    assert found["seals"] == [seal["id"]]
    assert found["operation"]["name"] == "fallocate-punch-hole"
    (recalled,) = http.get("/v1/recalls", params={"path": file}).json()["seals"]
    assert recalled["state"] == "recalled"
    http.delete(f"/v1/seals/{seal['id']}").raise_for_status()
    intruder.join(PATIENCE)
    assert not _waiting(http, file)
    text = http.get("/metrics").text
    assert 'sealsvc_conflicts_total{verdict="held"}' in text
    assert "sealsvc_conflict_seconds_count" in text


def test_recalls_have_pages(http: httpx.Client, control: Client, file: str) -> None:
    """Of seals in two states, more than one message of the service may hold."""
    terms = {"path": file, "kind": "shared", "grace": 300.0}
    seals = []
    for number in range(95):
        reply = control.grant(length=4096, offset=number * 4096, **terms)
        os.close(reply.fds[0])
        seals.append(reply.seal.id)
    seals.sort()
    http.post("/v1/recalls", json={"path": file}).raise_for_status()
    where = f"/v1/recalls?path={file}&limit=30"
    found, sizes = [], []
    while where:
        answer = http.get(where)
        page = answer.json()
        found += [seal["id"] for seal in page["seals"]]
        sizes.append(len(page["seals"]))
        where = answer.links.get("next", {}).get("url", "")
        assert bool(where) is (page["next"] is not None)
    assert found == seals
    assert sizes == [30, 30, 30, 5]
    for seal in seals:
        control.call(Return, seal=seal)


def _waiting(http: httpx.Client, path: str) -> list[dict[str, Any]]:
    return [c for c in http.get("/v1/conflicts").json()["conflicts"] if c["path"] == path]


# Claims


def test_a_claim_is_redeemed_once_for_the_descriptor(
    http: httpx.Client, control: Client, file: str
) -> None:
    answer = http.post("/v1/claims", json={"path": file, "tag": "claimed", "length": MiB})
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    claim = answer.json()["claim"]
    reply = control.call(Redeem, claim=claim)
    try:
        assert reply.seal.holder.pid == os.getpid()
        assert (reply.seal.owner, reply.seal.tag, reply.seal.range.length) == (
            "admin",
            "claimed",
            MiB,
        )
        assert os.fstat(reply.fds[0]).st_size == 4 * MiB
        with pytest.raises(Refusal, match="denied"):
            control.call(Redeem, claim=claim)
        http.post("/v1/recalls", json={"seal": reply.seal.id})
        assert any(isinstance(push, Recall) for push in control.pushes(PATIENCE))
    finally:
        os.close(reply.fds[0])
    control.call(Return, seal=reply.seal.id)


def test_a_claim_is_for_the_users_it_names(there: Front, control: Client) -> None:
    control.call(Simulate, action="create", path="/sim/guest/a", size=MiB)
    with there.http("guest") as guest:
        claim = guest.post("/v1/claims", json={"path": "/sim/guest/a"}).json()
        assert claim["uids"] == [os.getuid()]
        assert guest.post("/v1/claims", json={"path": "/sim/b"}).json()["code"] == "no-such-file"
    script = (
        "import os, sys; os.setuid(65534)\n"
        "from sealsvc.client import Client; from sealsvc.protocol.admin import Redeem\n"
        "Client(sys.argv[1]).call(Redeem, claim=sys.argv[2])"
    )
    os.chmod(Path(there.control).parent, 0o755)
    told = subprocess.run(
        [sys.executable, "-c", script, there.control, claim["claim"]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "denied" in told.stderr or "PermissionError" in told.stderr, told.stderr
    command = [sys.executable, "-m", "sealsvc.cli.sealctl", "redeem", "-"]
    show = "import os; print(os.environ['SEALSVC_SEAL'], os.fstat(int(os.environ['SEALSVC_FD'])))"
    done = subprocess.run(
        [*command, "--socket", there.control, "--", sys.executable, "-c", show],
        cwd=ROOT,
        input=claim["claim"] + "\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert f"st_size={MiB}" in done.stdout


def test_a_holder_of_a_user_that_is_not_listed_does_not_exist(
    there: Front, control: Client
) -> None:
    control.call(Simulate, action="create", path="/sim/guest/b", size=MiB)
    stranger = subprocess.Popen(["sleep", "60"], user=65534)
    try:
        with there.http("guest") as guest:
            told = []
            for pid in (stranger.pid, 2**22 - 7):
                body = {"path": "/sim/guest/b", "holder": {"pid": pid}}
                answer = guest.post("/v1/seals", json=body)
                told.append((answer.status_code, answer.text.replace(str(pid), "PID")))
            assert told[0] == told[1]
            assert told[0][0] == 404
            body = {"path": "/sim/guest/b", "holder": {"pid": os.getpid()}}
            assert guest.post("/v1/seals", json=body).status_code == 201
    finally:
        stranger.kill()
        stranger.wait()


# Jobs and policy


def test_an_audit_as_a_job(there: Front, http: httpx.Client, file: str) -> None:
    granted(http, file)
    started = http.post("/v1/jobs", json={"kind": "audit"})
    assert started.status_code == 202
    where = started.headers["location"]
    wait_for(lambda: http.get(where).json()["state"] != "running")
    job = http.get(where).json()
    assert (job["state"], job["principal"]) == ("done", "admin")
    assert job["result"]["checked"] >= 1
    assert http.get("/v1/jobs").json()["jobs"][0]["id"] == job["id"]
    assert http.delete(where).json()["state"] == "done"
    assert http.get("/v1/jobs/0123456789abcdef").json()["code"] == "no-such-job"
    doctor = http.post("/v1/jobs", json={"kind": "doctor", "path": "/sim"})
    assert doctor.json()["code"] == "filesystem-unsupported"
    assert http.get("/v1/coverage", params={"path": "/sim"}).json()["rows"] == []


def test_the_policy_is_read_again(there: Front, http: httpx.Client, file: str) -> None:
    config: Path = there.config  # type: ignore[attr-defined]
    assert http.get("/v1/policy").json()["policy"]["max_grace"] == 300.0
    before = config.read_text()
    text = before.replace("300.0", "5.0") + "[service]\nworkers = 3\n"
    checked = http.post("/v1/policy/validation", json={"text": text}).json()
    assert (checked["changed"], checked["restart"]) == (["max_grace"], ["service.workers"])
    bad = http.post("/v1/policy/validation", json={"text": "[policy]\nmax_grace = -1\n"})
    assert bad.json()["code"] == "bad-request"
    config.write_text("[policy\n")
    assert http.post("/v1/policy/reload").json()["code"] == "bad-request"
    assert http.get("/v1/policy").json()["policy"]["max_grace"] == 300.0
    try:
        config.write_text(text)
        assert http.post("/v1/policy/reload").json()["changed"] == ["max_grace"]
        body = {"path": file, "grace": 6.0, "holder": {"pid": os.getpid()}}
        assert http.post("/v1/seals", json=body).json()["code"] == "denied"
    finally:
        config.write_text(before)
        http.post("/v1/policy/reload").raise_for_status()


# What is recorded


def test_history_changes_and_the_trail(http: httpx.Client, control: Client, file: str) -> None:
    seal = granted(http, file)["id"]
    control.call(Simulate, action="drift", path=file)
    wait_for(lambda: bool(_recorded(http, file)))
    changed = http.get(f"/v1/seals/{seal}/changes").json()
    assert (changed["seal"], changed["total"] > 0) == (seal, True)
    assert http.post("/v1/audits", json={"seal": seal}).json()["drifted"]
    steps = f"/v1/seals/{seal}/history"
    wait_for(lambda: "lost" in [t["after"] for t in http.get(steps).json()["transitions"]])
    http.delete(f"/v1/seals/{seal}").raise_for_status()
    wait_for(lambda: _recorded(http, file)[0]["ended_at"] is not None)
    assert _recorded(http, file, state="returned")[0]["id"] == seal
    assert _recorded(http, file, state="expired") == []
    page = http.get("/v1/trail", params={"limit": 1})
    assert len(page.json()["entries"]) == 1
    assert http.get(page.links["next"]["url"]).json()["entries"] != page.json()["entries"]
    assert http.post("/v1/trail/verification").json()["intact"] is True
    assert http.get("/v1/history/conflicts").status_code == 200
    assert http.get(f"/v1/seals/{'f' * 24}/history").json()["code"] == "no-such-seal"


def test_a_page_has_as_many_as_were_asked_for(
    http: httpx.Client, control: Client, file: str
) -> None:
    """However many messages of the control socket that takes."""
    for _ in range(120):
        reply = control.grant(path=file, kind="shared")
        os.close(reply.fds[0])
        control.call(Return, seal=reply.seal.id)
    wait_for(lambda: len(_recorded(http, file, state="returned", limit="1000")) == 120)
    first = http.get("/v1/history", params={"path": file, "limit": 119})
    assert len(first.json()["seals"]) == 119
    assert len(http.get(first.links["next"]["url"]).json()["seals"]) == 1
    entries = http.get("/v1/trail", params={"limit": 200}).json()["entries"]
    assert [e["seq"] for e in entries] == list(
        range(entries[0]["seq"], entries[0]["seq"] - 200, -1)
    )


def test_a_page_has_a_thousand_seals(http: httpx.Client, control: Client, file: str) -> None:
    held = []
    for _ in range(1001):
        reply = control.grant(path=file, kind="shared")
        os.close(reply.fds[0])
        held.append(reply.seal.id)
    first = http.get("/v1/seals", params={"path": file, "limit": 1000})
    second = http.get(first.links["next"]["url"])
    pages = [[seal["id"] for seal in page.json()["seals"]] for page in (first, second)]
    assert [len(page) for page in pages] == [1000, 1]
    assert {*pages[0], *pages[1]} == set(held)
    for seal in held:
        control.call(Return, seal=seal)


def _recorded(http: httpx.Client, path: str, **more: str) -> list[dict[str, Any]]:
    return list(http.get("/v1/history", params={"path": path, **more}).json()["seals"])


# Events


def test_events_over_a_websocket(there: Front, http: httpx.Client, file: str) -> None:
    url = there.base.replace("http", "ws") + "/v1/events/ws"
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with connect(url, additional_headers=headers) as socket:
        seal = granted(http, file)
        event = json.loads(socket.recv(10))
        while event["name"] != "granted":
            event = json.loads(socket.recv(10))
        assert (event["seal"], event["path"]) == (seal["id"], file)
    with connect(f"{url}?since={event['seq'] - 1}", additional_headers=headers) as socket:
        assert json.loads(socket.recv(10)) == event
    for wrong in ({}, {"Authorization": "Bearer x"}):
        with pytest.raises(Exception, match="403"):
            connect(url, additional_headers=wrong)


def test_a_guest_hears_of_its_files_alone(
    there: Front, http: httpx.Client, control: Client, file: str
) -> None:
    control.call(Simulate, action="create", path="/sim/guest/heard", size=MiB)
    url = there.base.replace("http", "ws") + "/v1/events/ws"
    with connect(url, additional_headers={"Authorization": "Bearer guest"}) as socket:
        granted(http, file)
        granted(http, "/sim/guest/heard")
        event = json.loads(socket.recv(10))
        assert event["path"] == "/sim/guest/heard"


# sealctl --url


def sealctl(*arguments: str, url: str = "", socket: str = "") -> tuple[int, str, str]:
    place = {"SEALSVC_URL": url, "SEALSVC_TOKEN": TOKEN} if url else {"SEALSVC_SOCKET": socket}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SEALSVC_")}
    done = subprocess.run(
        [sys.executable, "-m", "sealsvc.cli.sealctl", *arguments],
        cwd=ROOT,
        env={**environment, **place},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout, done.stderr


def test_sealctl_says_the_same_over_both(there: Front, http: httpx.Client, file: str) -> None:
    seal = granted(http, file, ttl=0.0)["id"]
    for arguments in (
        ("show", seal, "-o", "json"),
        ("show", seal, "--extents"),
        ("ls", "--path", file, "-o", "json"),
        ("filesystems",),
        ("audit", seal),
        ("show", "f" * 24),
        ("history", "--path", file, "-o", "json"),
        ("trail", "--limit", "1", "-o", "json"),
        ("recall", "--path", "/sim/none"),
        ("validate", seal),
    ):
        over = sealctl(*arguments, url=there.base)
        assert over == sealctl(*arguments, socket=there.control), arguments
    code, told, _ = sealctl("recall", seal, url=there.base)
    assert (code, told.split()) == (0, ["ID", "STATE", seal, "recalled"])
    assert sealctl("return", seal, url=there.base)[0] == 0
    code, _, told = sealctl("hold", "/sim/x", "--", "true", url=there.base)
    assert code == 2
    assert "control socket" in told
    assert sealctl("ls", url="http://127.0.0.1:1")[0] == 7


def test_sealctl_watch_over_http(there: Front, http: httpx.Client, file: str) -> None:
    http.delete(f"/v1/seals/{granted(http, file)['id']}").raise_for_status()
    code, told, _ = sealctl("watch", "--since", "0", "--count", "3", "-o", "json", url=there.base)
    assert code == 0
    assert [json.loads(line)["seq"] for line in told.splitlines()] == [1, 2, 3]


def test_an_alarm_stays_until_it_is_acknowledged(
    there: Front, http: httpx.Client, control: Client, file: str
) -> None:
    seal = granted(http, file)["id"]
    control.call(Simulate, action="drift", path=file)
    assert http.post("/v1/audits", json={"seal": seal}).json()["drifted"]
    alarms = [a for a in http.get("/v1/alarms").json()["alarms"] if a["seal"] == seal]
    (drift,) = [a for a in alarms if a["name"] == "drift"]
    assert (drift["path"], drift["count"], drift["acknowledged_by"]) == (file, 1, "")
    where = f"/v1/alarms/{drift['id']}/acknowledgement"
    with there.http("guest") as guest:
        assert guest.get("/v1/alarms").json()["alarms"] == []
    with there.http("viewer") as viewer:
        assert viewer.post(where).status_code == 403
    with there.http("operator") as operator:
        assert operator.post(where).json()["acknowledged_by"] == "operator"
    left = http.get("/v1/alarms", params={"open": "true"}).json()["alarms"]
    assert drift["id"] not in {a["id"] for a in left}
    assert http.post(f"/v1/alarms/{'0' * 16}/acknowledgement").json()["code"] == "no-such-alarm"


def test_who_waits_for_much_keeps_nobody_else_waiting(there: Front, file: str) -> None:
    """All principals are served on one connection with the service; one has many requests there
    that take long."""
    port = int(there.base.rpartition(":")[2])
    body = json.dumps({"path": file, "wait": True, "grace": 300.0}).encode()
    head = (
        "POST /v1/recalls HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer operator\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with there.http() as http, ExitStack() as stack:
        seal = granted(http, file, kind="shared", grace=300.0)["id"]
        waiting = []
        for _ in range(100):
            waiting.append(stack.enter_context(socket.create_connection(("127.0.0.1", port))))
            waiting[-1].sendall(head.encode() + body)
        wait_for(lambda: http.get(f"/v1/seals/{seal}").json()["state"] == "recalled")
        for _ in range(20):
            assert http.get("/v1/status").status_code == 200
        assert not select.select(waiting, [], [], 0.5)[0], "none is refused, and all wait"
        http.delete(f"/v1/seals/{seal}").raise_for_status()
        for sock in waiting:
            sock.settimeout(PATIENCE)
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
