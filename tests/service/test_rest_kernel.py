"""REST before the real kernel: a seal for a process that has the file open, and the doctor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.conftest import TOKEN, write_principals
from tests.api.running import Front, front
from tests.service.conftest import MiB, until

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
        process.wait(20)
        process.stdout.close()


def test_a_seal_by_pid_and_descriptor(there: Front, root: Path, file: Path) -> None:
    with opened(file) as (pid, fd), there.http() as http:
        body = {"holder": {"pid": pid, "fd": fd}, "kind": "shared", "grace": 20.0}
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
        assert intruder.wait(20) == 0
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
        assert http.delete(where).json()["state"] == "cancelled"
        until(lambda: not json.loads(http.get("/v1/seals").text)["seals"])


def _over(http: httpx.Client, where: str) -> bool:
    return bool(http.get(where).json()["state"] != "running")


def test_file_systems_and_their_gaps_are_told(there: Front, root: Path) -> None:
    with there.http() as http:
        found = http.get("/v1/filesystems").json()["filesystems"]
    here = next(one for one in found if one["mount"] == str(root))
    assert here["supported"]
    assert "overlay-truncate" in {gap["risk"] for gap in here["gaps"]}
