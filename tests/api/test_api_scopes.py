"""Whatever can be read: none of it tells a principal that is confined of what lies outside."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Simulate
from sealsvc_api.app import build_app
from sealsvc_api.settings import Settings
from tests.api.conftest import TOKEN, write_principals
from tests.api.running import Front, front, service
from tests.support.waiting import until

SECRET = "n0b0dy5-bu51ne55"  # in the path and tag of what lies outside
DESCRIPTION: dict[str, Any] = build_app(Settings()).openapi()
READ = sorted(path for path, item in DESCRIPTION["paths"].items() if "get" in item)
STREAMS = {"/v1/events"}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("scopes")
    roles = {
        role: {
            "role": role,
            "scopes": ["/sim/guest"],
            "holders": [os.getuid()],
            "token": role,
            "requests_per_second": 100_000,
        }
        for role in ("viewer", "sealer", "operator")
    }
    everything = {"role": "admin", "scopes": ["/"], "holders": ["*"], "token": TOKEN}
    principals = write_principals(directory / "principals.toml", everything=everything, **roles)
    with service(directory, "--sim"), front(directory, principals) as made:
        yield made


@pytest.fixture(scope="module")
def outside(there: Front) -> Iterator[dict[str, str]]:
    """What identifies a seal outside, by the name of the parameter of a route."""
    path = f"/sim/{SECRET}"
    with there.client() as client, there.http() as admin:
        client.call(Simulate, action="create", path=path, size=1 << 20)
        reply = client.grant(path=path, kind="shared", tag=SECRET, grace=300.0)
        os.close(reply.fds[0])
        client.call(Simulate, action="create", path="/sim/guest/own", size=1 << 20)
        with ThreadPoolExecutor(1) as pool, there.client() as intruder:
            conflict = {"action": "conflict", "path": path, "length": 4096, "pid": 1}
            waiting = pool.submit(intruder.call, Simulate, **conflict)
            until(lambda: bool(admin.get("/v1/conflicts").json()["conflicts"]))
            (file,) = admin.get("/v1/files", params={"path": path}).json()["files"]
            yield {"seal": reply.seal.id, "pid": str(os.getpid()), "key": file["key"]}
            client.call(Return, seal=reply.seal.id)
            waiting.result()


def test_the_admin_sees_it(there: Front, outside: dict[str, str]) -> None:
    """Or the test below would prove nothing."""
    with there.http() as http:
        seen = {
            path for path in READ if path not in STREAMS if SECRET in _read(http, path, outside)
        }
    assert {"/v1/seals", "/v1/files", "/v1/conflicts", "/v1/recalls"} <= seen


@pytest.mark.parametrize("role", ["viewer", "sealer", "operator"])
def test_a_scope_hears_of_nothing_outside(there: Front, outside: dict[str, str], role: str) -> None:
    with there.http(role) as http:
        for path in READ:
            if path in STREAMS:
                continue
            said = _read(http, path, outside)
            assert SECRET not in said, path
            asked = "{" in path
            assert asked or outside["seal"] not in said, path
            assert asked or f'"pid":{outside["pid"]}' not in said.replace(" ", ""), path
        with http.stream("GET", "/v1/events?since=0") as answer, there.client() as client:
            reply = client.grant(path="/sim/guest/own", kind="shared")
            os.close(reply.fds[0])
            client.call(Return, seal=reply.seal.id)
            for line in answer.iter_lines():
                assert SECRET not in line
                if reply.seal.id in line:  # what was kept before has been told
                    break


def _read(http: httpx.Client, path: str, outside: dict[str, str]) -> str:
    """The answer to a route; where it names something, to what lies outside."""
    where = re.sub(r"\{(\w+)\}", lambda name: outside.get(name[1], "0" * 16), path)
    return http.get(where).text
