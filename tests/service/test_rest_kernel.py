"""REST before the real kernel: a seal for a process that has the file open, and the doctor."""

from __future__ import annotations

import functools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from sealsvc.runtime import even_time
from sealsvc_api.app import build_app
from sealsvc_api.settings import Settings
from tests.api.conftest import TOKEN, write_principals
from tests.api.running import Front, front
from tests.api.secrecy import told_apart
from tests.support.maze import STRANGE, Maze, elsewhere, links
from tests.support.service import MiB
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel

OPENED = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
print(fd, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def there(root: Path, socket: str, tmp_path: Path) -> Iterator[Front]:
    principals = write_principals(
        tmp_path / "principals.toml",
        root={"role": "admin", "scopes": ["/"], "holders": ["*"], "token": TOKEN},
        guest={
            "role": "sealer",
            "scopes": [str(root / "guest")],
            "holders": ["*"],
            "token": "guest",
        },
        scoped={
            "role": "operator",
            "scopes": [str(root / "guest")],
            "holders": ["*"],
            "token": "scoped",
            "requests_per_second": 10_000,
        },
        viewer={"role": "viewer", "scopes": ["/"], "token": "viewer"},
    )
    directory = Path(socket).parent
    with front(directory, principals) as found:
        yield found


@contextmanager
def opened(file: Path) -> Iterator[tuple[int, int]]:
    """A process that opened the file itself: its pid, and the number of its descriptor."""
    command = [sys.executable, "-c", OPENED, str(file)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process.pid, int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()


def test_a_seal_by_pid_and_descriptor(there: Front, root: Path, file: Path) -> None:
    with opened(file) as (pid, fd), there.http() as http:
        body = {"holder": {"pid": pid, "fd": fd}, "kind": "shared", "grace": 200.0}
        answer = http.post("/v1/seals", json=body)
        assert answer.status_code == 201, answer.text
        seal = answer.json()
        assert (seal["path"], seal["holder"]["pid"]) == (str(file), pid)
        assert seal["range"]["length"] == MiB
        intruder = subprocess.Popen(["truncate", "-s", "4096", file])
        until(lambda: http.get(f"/v1/seals/{seal['id']}").json()["state"] == "recalled")
        assert intruder.poll() is None, "it waits"
        (waiting,) = http.get("/v1/conflicts").json()["conflicts"]
        assert (waiting["operation"]["pid"], waiting["path"]) == (intruder.pid, str(file))
        assert http.get(f"/v1/seals/{seal['id']}/extents", params={"now": "true"}).json()["extents"]
        http.delete(f"/v1/seals/{seal['id']}").raise_for_status()
        assert intruder.wait(PATIENCE) == 0
    assert file.stat().st_size == 4096


def test_what_lies_outside_the_scope_stays_hidden(there: Front, root: Path, file: Path) -> None:
    """Though the process has it open: that is its business, not the principal's."""
    (root / "guest").mkdir(exist_ok=True)
    inside = root / "guest" / file.name
    inside.write_bytes(file.read_bytes())
    subprocess.run(["sync", inside], check=True)
    with there.http("guest") as http:
        with opened(file) as (pid, fd):
            body = {"holder": {"pid": pid, "fd": fd}, "kind": "shared"}
            answer = http.post("/v1/seals", json=body)
            assert (answer.status_code, answer.json()["code"]) == (404, "no-such-file")
            assert str(file) not in answer.text
        with opened(inside) as (pid, fd):
            body = {"holder": {"pid": pid, "fd": fd}, "kind": "shared"}
            answer = http.post("/v1/seals", json=body)
            assert answer.status_code == 201, answer.text
            http.delete(f"/v1/seals/{answer.json()['id']}")
    inside.unlink()


@pytest.fixture
def maze(there: Front, root: Path, file: Path) -> Iterator[Maze]:
    with links(root / "guest", file) as inside, opened(file) as (pid, fd), there.http() as http:
        body = {"holder": {"pid": pid, "fd": fd}, "kind": "shared"}
        answer = http.post("/v1/seals", json=body)
        assert answer.status_code == 201, answer.text
        yield Maze(inside, answer.json()["id"], file)
        http.delete(f"/v1/seals/{answer.json()['id']}").raise_for_status()


# What a field that names a file or a directory is called, in a query or in a body.
_NAMING = {"path", "source", "destination", "filesystem", "goal.to"}
# Strings that name none. One that is in neither set is a new one: say which it is.
_NAMES_NOTHING = {
    *("after", "alarm", "attachment", "job", "key", "kind", "name", "owner", "part", "profile"),
    *(
        "reason",
        "resume",
        "seal",
        "search",
        "secret",
        "since",
        "strategies",
        "tag",
        "text",
        "token",
    ),
    *("Idempotency-Key", "If-Match", "If-None-Match", "Last-Event-ID"),
}
_DESCRIPTION: dict[str, Any] = build_app(Settings()).openapi()


def _resolved(schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = _DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _fields(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
    schema = _resolved(schema)
    for choice in schema.get("anyOf", ()):
        yield from _fields(choice, prefix)
    for name, value in schema.get("properties", {}).items():
        yield prefix + name
        yield from _fields(value, f"{prefix}{name}.")


def _strings(schema: dict[str, Any], name: str) -> Iterator[str]:
    """Each field below this one that is a text of the client's choice."""
    schema = _resolved(schema)
    if schema.get("type") == "string" and "enum" not in schema:
        yield name
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), schema.get("items")):
        if choice is not None:
            yield from _strings(choice, name)
    for field, value in schema.get("properties", {}).items():
        yield from _strings(value, f"{name}.{field}" if name else field)


def test_it_is_known_of_each_string_whether_it_names_a_file() -> None:
    found = set[str]()
    for item in _DESCRIPTION["paths"].values():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                found.update(_strings(parameter["schema"], parameter["name"]))
            for body in operation.get("requestBody", {}).get("content", {}).values():
                found.update(_strings(body["schema"], ""))
    assert found == _NAMING | _NAMES_NOTHING


def _naming() -> list[tuple[str, str, str]]:
    """Method, path and field of each request that takes a path: found in the description, so that
    what is added there is tried as well."""
    found = []
    for where, item in _DESCRIPTION["paths"].items():
        for method, operation in item.items():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in _NAMING:
                    found.append((method, where, parameter["name"]))
            if "requestBody" in operation:
                body = operation["requestBody"]["content"]["application/json"]["schema"]
                names = dict.fromkeys(_fields(body))
                found += [(method, where, name) for name in names if name in _NAMING]
    return found


def _asked(http: httpx.Client, path: Path, own: Path) -> dict[str, httpx.Response]:
    """Of each field; where a request needs another path, it is of `own`, a file in the scope."""
    answers = {}
    others: dict[str, dict[str, Any]] = {
        "/v1/seals": {"holder": {"pid": os.getpid()}},
        "/v1/jobs": {"kind": "doctor"},
        "/v1/copies": {"source": str(own), "destination": str(own)},
        "/v1/relocations": {"path": str(own), "goal": {"defrag": True}},
    }
    for method, where, field in _naming():
        if method == "get":
            asked = {"params": {field: str(path)}}
        elif field == "goal.to":
            asked = {"json": {"path": str(own), "goal": {"to": str(path)}}}
        else:
            asked = {"json": others.get(where, {}) | {field: str(path)}}
        answer = http.request(method, where, **asked)
        while answer.status_code == 429:  # a principal's requests have a rate
            time.sleep(float(answer.headers["retry-after"]))
            answer = http.request(method, where, **asked)
        answers[f"{method} {where} {field}"] = answer
    return answers


def _shown(answer: httpx.Response, path: Path) -> tuple[int, str]:
    """Status and body, but for the path that was asked for and the request's id."""
    text = answer.text.replace(answer.headers["x-request-id"], "ID")
    for escaped in (True, False):
        text = text.replace(json.dumps(str(path), ensure_ascii=escaped)[1:-1], "PATH")
    return answer.status_code, text


@pytest.mark.parametrize("token", ["scoped", "guest"])
def test_a_forbidden_path_is_answered_as_a_missing_one(
    there: Front, maze: Maze, root: Path, token: str
) -> None:
    own = maze.inside / "own"
    own.write_bytes(bytes(4096))
    with there.http(token) as http:
        asked = _asked(http, maze.missing[0], own)
        assert len(asked) >= 15, list(asked)
        plain = {name: _shown(answer, maze.missing[0]) for name, answer in asked.items()}
        assert {status for status, _ in plain.values()} <= {200, 400, 403, 404}
        with elsewhere(maze) as foreign:
            for path in [*maze.forbidden, *maze.missing[1:], *foreign]:
                for name, answer in _asked(http, path, own).items():
                    assert _shown(answer, path) == plain[name], (name, path)
        for path in (top / text for top in (root, maze.inside) for text in STRANGE):
            for name, answer in _asked(http, path, own).items():
                # What no name may be is told by the text alone.
                malformed = answer.status_code == 400
                assert malformed or _shown(answer, path) == plain[name], (name, path)
    own.unlink()
    with there.http() as http:
        assert http.get(f"/v1/seals/{maze.seal}").json()["state"] == "granted"


def test_a_descriptor_of_another_namespace_is_no_way_out(there: Front, maze: Maze) -> None:
    """Its path is one of the scope there, and here another file's, or nobody's."""
    with elsewhere(maze) as names, there.http("guest") as http:
        pid = int(names[0].parts[2])
        for name in (maze.inside / "hollow" / maze.file.name, maze.inside / "blank"):
            opens = ["nsenter", f"--target={pid}", "--mount", sys.executable, "-c", OPENED, name]
            process = subprocess.Popen(
                opens, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert process.stdin is not None
            assert process.stdout is not None
            fd = int(process.stdout.readline())
            body = {"holder": {"pid": process.pid, "fd": fd}, "kind": "shared"}
            answer = http.post("/v1/seals", json=body)
            process.stdin.close()
            process.wait(PATIENCE)
            process.stdout.close()
            assert (answer.status_code, answer.json()["code"]) == (404, "no-such-file"), name
            assert "hollow" not in answer.text


def test_the_time_of_an_answer_does_not_tell_forbidden_from_missing(
    there: Front, maze: Maze
) -> None:
    """Every pair of one way to be forbidden and one way to be missing. Without even_time.py those
    that the service is not asked about are told apart each time. tests/bench/walls.py says how
    well time is hidden; here the limit is one that no load of the machine reaches by chance."""
    with there.http("scoped") as http, there.http() as admin:
        seal, pid = maze.seal, admin.get(f"/v1/seals/{maze.seal}").json()["holder"]["pid"]
        (known,) = admin.get("/v1/files", params={"path": str(maze.file)}).json()["files"]
        other = re.sub("-(.)", r"-1\1", known["key"], count=1)  # of another inode
        pairs = {
            "outside": (f"/v1/files?path={maze.file}", f"/v1/files?path={maze.missing[0]}"),
            "link": (f"/v1/files?path={maze.forbidden[1]}", f"/v1/files?path={maze.missing[0]}"),
            "seal": (f"/v1/seals/{seal}", f"/v1/seals/{'0' * len(seal)}"),
            "holder": (f"/v1/holders/{pid}", "/v1/holders/2147483647"),
            "file": (f"/v1/files/{known['key']}", f"/v1/files/{other}"),
        }
        for name, (forbidden, missing) in pairs.items():
            assert {http.get(path).status_code for path in (forbidden, missing)} == {404}, name
            ask = [functools.partial(http.get, path) for path in (forbidden, missing)]
            # What tells them apart does so each time; a machine so busy that the work takes longer
            # than a step may once.
            apart = [told_apart(*ask, 60)]
            while abs(apart[-1] - 0.5) >= 0.4 and len(apart) < 3:
                apart.append(told_apart(*ask, 60))
            # They are alike as long as the work takes less than a step.
            assert abs(apart[-1] - 0.5) < 0.4 or _is_slow(http), (name, apart)


def _is_slow(http: httpx.Client) -> bool:
    """Whether an answer without any work takes a fifth of a step, which is several times of what it
    should take: then the work may take longer than a step."""
    took = []
    for _ in range(20):
        began = time.monotonic()
        http.get("/healthz")
        took.append(time.monotonic() - began)
    return statistics.median(took) > even_time.STEP / 5


def test_a_hard_link_below_a_scope_recalls_nothing_outside(there: Front, maze: Maze) -> None:
    with there.http("scoped") as http:
        path = str(maze.inside / "hard")
        assert http.get("/v1/seals", params={"path": path}).json()["seals"] == []
        assert http.post("/v1/recalls", json={"path": path}).json()["recalled"] == []
    with there.http() as http:
        assert http.get(f"/v1/seals/{maze.seal}").json()["state"] == "granted"
        assert http.get("/v1/seals", params={"path": path}).json()["seals"], "the scope / sees it"


def test_nobody_maps_the_host_by_paths(there: Front) -> None:
    with there.http("viewer") as http:
        said = {
            _shown(http.get("/v1/seals", params={"path": path}), Path(path))
            for path in ("/etc/passwd", "/etc/nothing", "/proc/self/root/etc", "/root")
        }
    assert {status for status, _ in said} == {404}
    assert len(said) == 1


def test_status_tells_a_scope_of_itself_alone(there: Front, maze: Maze, root: Path) -> None:
    with there.http("scoped") as http:
        status = http.get("/v1/status").json()
        assert (status["seals"], status["counters"], status["connections"]) == ({}, {}, 0)
        (here,) = http.get("/v1/filesystems").json()["filesystems"]
        assert here["seals"] == 0
        for path in ("/v1/jobs", "/v1/measures", "/metrics"):
            assert http.get(path).status_code == 403, path
    with there.http() as http:
        assert http.get("/v1/status").json()["seals"] == {"granted": 1}


def test_the_doctor_stays_below_the_roots(there: Front, root: Path, tmp_path: Path) -> None:
    (root / "away").symlink_to(tmp_path)
    with there.http() as http:
        for path in (str(tmp_path), "/", "tmp", str(root / "away"), str(root / ".." / "tmp")):
            answer = http.post("/v1/jobs", json={"kind": "doctor", "path": path})
            assert (answer.status_code, answer.json()["code"]) == (404, "no-such-file"), path
    assert not list(tmp_path.glob(".sealsvc-doctor-*"))
    (root / "away").unlink()


def test_the_doctor_as_a_job(there: Front, root: Path) -> None:
    if "xfs" not in str(root):
        pytest.skip("once is enough")
    with there.http() as http:
        job = http.post("/v1/jobs", json={"kind": "doctor", "path": str(root)}).json()
        where = f"/v1/jobs/{job['id']}"
        until(lambda: http.get(where).json()["done"] >= 4 or _over(http, where))
        assert http.get(where).json()["state"] == "running", http.get(where).text
        busy = http.post("/v1/jobs", json={"kind": "doctor", "path": str(root)})
        assert busy.json()["code"] == "limit-reached"
        assert http.get(where).json()["total"] > 100
        assert http.get("/v1/seals").json()["seals"] == [], "it has a service of its own"
        assert _privates(str(root)), "it runs"
        assert http.delete(where).json()["state"] == "cancelled"
        assert not _privates(str(root)), "and its service and keeper ended with it"
        assert not list(root.glob(".sealsvc-doctor-*"))
        until(lambda: not json.loads(http.get("/v1/seals").text)["seals"])


def _privates(root: str) -> list[int]:
    """Processes of private services whose root is below this directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        config = next((a for a in process.info["cmdline"] or () if a.endswith("sealsvc.toml")), "")
        with suppress(OSError):
            if "sealsvc-doctor-" in config and root in Path(config).read_text():
                found.append(process.pid)
    return found


def _over(http: httpx.Client, where: str) -> bool:
    return bool(http.get(where).json()["state"] != "running")


def test_file_systems_and_their_gaps_are_told(there: Front, root: Path) -> None:
    with there.http() as http:
        found = http.get("/v1/filesystems").json()["filesystems"]
    here = next(one for one in found if one["mount"] == str(root))
    assert here["supported"]
    assert "overlay-truncate" in {gap["risk"] for gap in here["gaps"]}
