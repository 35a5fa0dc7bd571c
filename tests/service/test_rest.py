"""The REST API as an unprivileged process in front of the real service."""

from __future__ import annotations

import os
import socket as sockets
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.kernel


@pytest.fixture
def http(socket: str, tmp_path: Path) -> Iterator[httpx.Client]:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"sha256:{sha256(b'secret').hexdigest()}\n")
    tokens.chmod(0o600)
    with sockets.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "api.serve", "--port", str(port), "--socket", socket]
    command += ["--token-file", str(tokens)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stderr=log, stdout=log)
    base = f"http://127.0.0.1:{port}"
    headers = {"Authorization": "Bearer secret"}
    try:
        with httpx.Client(base_url=base, headers=headers, timeout=20) as client:
            deadline = time.monotonic() + 20
            while True:
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def test_a_seal_for_a_local_process_by_pid_and_descriptor(http: httpx.Client, file: Path) -> None:
    code = "import os, sys; print(os.open(sys.argv[1], os.O_RDWR), flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    fd = int(holder.stdout.readline())
    made = http.post("/v1/seals", json={"holder": {"pid": holder.pid, "fd": fd}, "kind": "shared"})
    assert made.status_code == 201, made.text
    seal = made.json()
    assert seal["holder"]["pid"] == holder.pid
    assert seal["file"]["inode"] == file.stat().st_ino
    listed = http.get("/v1/seals", params={"pid": holder.pid}).json()
    assert [one["id"] for one in listed["seals"]] == [seal["id"]]
    extents = http.get(f"/v1/seals/{seal['id']}/extents").json()
    assert extents["total"] == seal["extents"]
    assert http.delete(f"/v1/seals/{seal['id']}").json()["state"] == "returned"
    assert http.get(f"/v1/seals/{seal['id']}").json()["state"] == "returned"
    assert http.get(f"/v1/seals/{'0' * 24}").status_code == 404
    holder.communicate(b"", timeout=10)


def test_changes_need_a_token_and_errors_are_problems(http: httpx.Client, file: Path) -> None:
    body = {"path": str(file), "holder": {"pid": os.getpid()}}
    denied = http.post("/v1/seals", json=body, headers={"Authorization": "Bearer wrong"})
    assert denied.status_code == 401
    missing = http.post("/v1/seals", json={**body, "path": f"{file}.none"})
    assert missing.status_code == 404
    assert missing.headers["content-type"] == "application/problem+json"
    assert missing.json()["code"] == "no-such-file"


def test_file_systems_and_their_gaps_are_told(http: httpx.Client, root: Path) -> None:
    found = http.get("/v1/filesystems").json()["filesystems"]
    here = next(one for one in found if one["mount"] == str(root))
    assert here["supported"]
    assert "overlay-truncate" in {gap["risk"] for gap in here["gaps"]}
