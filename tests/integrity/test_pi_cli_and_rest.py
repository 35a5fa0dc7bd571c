"""The same by sealctl and by REST, of a service that has found something."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sealsvc.cli import sealctl
from tests.api.conftest import write_principals
from tests.api.running import front
from tests.integrity.conftest import BLOCK, MiB, attach, give_back, sealed

pytestmark = pytest.mark.kernel


def sealctl_says(ground, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", sealctl.__name__, "pi", *arguments],
        env={**os.environ, "SEALSVC_SOCKET": ground.socket},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.mark.timeout(400)  # a dozen programs
def test_sealctl_from_the_profile_to_the_blessing(ground, client):
    assert "t10-dif1-4096" in sealctl_says(ground, "profiles")
    path = ground.file("by-sealctl")
    assert "checkers: client, service" in sealctl_says(ground, "query", str(path))
    seal, fd = sealed(client, path)
    told = sealctl_says(ground, "attach", seal.id, "--profile", "t10-dif1-4096", "-o", "json")
    attachment = json.loads(told)["attachments"][0]["id"]
    place = ground.place(client, seal.id, 3 * BLOCK)
    give_back(client, seal, fd)
    assert "256" in sealctl_says(ground, "ls", "--path", str(path))
    assert sealctl_says(ground, "verify", attachment).startswith("good: 256 good")
    ground.corrupt(place, b"?")
    said = sealctl_says(ground, "verify", attachment, status=8)
    assert said.startswith("corrupt: 1 corrupt, 255 good (read direct)")
    assert f"{3 * BLOCK}:4K" in said
    assert "checksum" in said
    assert str(place) in said
    assert str(path) in sealctl_says(ground, "errors", "--wait", "5s", status=8)
    assert "tagged" in sealctl_says(ground, "bless", attachment, "--range", "12K:4K")
    assert sealctl_says(ground, "verify", attachment).startswith("good")
    sealctl_says(ground, "scrub", attachment, "--rate", "1G")
    sealctl_says(ground, "detach", attachment)
    assert attachment not in sealctl_says(ground, "ls")
    sealctl_says(ground, "verify", attachment, status=4)


def test_rest_with_scopes(ground, client, tmp_path):
    inside, outside = ground.point / "inside", ground.point / "outside"
    for directory in (inside, outside):
        directory.mkdir()
    principals = write_principals(
        tmp_path / "principals.toml",
        scoped={
            "role": "operator",
            "scopes": [str(inside)],
            "holders": ["*"],
            "token": "scoped",
        },
    )
    made = {}
    for directory in (inside, outside):
        path = ground.file(f"{directory.name}/file")
        seal, fd = sealed(client, path)
        made[directory] = attach(client, seal), ground.place(client, seal.id, BLOCK)
        give_back(client, seal, fd)
        ground.corrupt(made[directory][1], b"?")
    with (
        front(ground.running.directory, principals) as there,
        there.http("scoped") as http,
    ):

        def ask(method, path, status=200, **more):
            answer = http.request(method, f"/v1/integrity{path}", **more)
            assert answer.status_code == status, answer.text
            return answer.json()

        assert len(ask("GET", "/profiles")["profiles"]) >= 20
        seen = ask("GET", "/attachments")["attachments"]
        assert [row["id"] for row in seen] == [made[inside][0].id]
        assert ask("GET", f"/ability?path={inside}/file")["checkers"] == ["client", "service"]
        ask("GET", f"/ability?path={outside}/file", 404)
        hidden, shown = made[outside][0].id, made[inside][0].id
        ask("POST", f"/attachments/{hidden}/verification", 404, json={})
        report = ask("POST", f"/attachments/{shown}/verification", json={})
        assert report["verdict"] == "corrupt"
        assert report["blocks"] == {"corrupt": 1, "good": MiB // BLOCK - 1}
        errors = ask("GET", "/errors?wait=5")["errors"]
        assert {error["path"] for error in errors} == {f"{inside}/file"}
        ask("POST", f"/attachments/{shown}/blessing", json={})
        ask("POST", f"/attachments/{shown}/scrub", 202, json={"rate": 1 << 30})
        ask("DELETE", f"/attachments/{hidden}", 404)
        ask("DELETE", f"/attachments/{shown}")
