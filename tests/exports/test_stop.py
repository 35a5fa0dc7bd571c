"""Stopping an export by REST: as `sealctl export stop` does, with a role, a scope and a trail."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.exports.nbd import Nbd
from sealsvc.exports.runtime import Runtime, start_time
from sealsvc.protocol.exports import ExportStopped, StopExport
from sealsvc.protocol.history import Trail
from sealsvc.protocol.seals import List
from tests.api.conftest import write_principals
from tests.api.running import Front, front
from tests.exports.exporting import Exports
from tests.support.service import RISKS, Running
from tests.support.waiting import until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(Nbd.missing()), reason=f"no NBD exports: {Nbd.missing()}"),
]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service and the API look for exports where this test makes them."""
    monkeypatch.setenv("SEALSVC_EXPORTS", str(tmp_path / "exports"))


@pytest.fixture
def there(running: Running, exports: Exports, xfs: Path) -> Iterator[Front]:
    roles: dict[str, dict[str, object]] = {
        name: {"role": name, "scopes": ["/"], "holders": ["*"], "token": name}
        for name in ("viewer", "sealer", "operator")
    }
    for name, scope in (("inside", str(xfs)), ("outside", f"{xfs}/elsewhere")):
        roles[name] = {"role": "operator", "scopes": [scope], "holders": ["*"], "token": name}
    principals = write_principals(running.directory / "principals.toml", **roles)
    with front(running.directory, principals) as found:
        yield found


@contextmanager
def exported(exports: Exports, image: Path) -> Iterator[dict[str, Any]]:
    """Stopped at the end if it was not before."""
    info = exports.call("create", "--type", "nbd", "disk", image)
    try:
        yield info
    finally:
        if Runtime(str(exports.directory)).find("disk") is not None:
            assert exports.ask("stop", "disk").returncode == 0


def stop(there: Front, token: str, status: int, query: str = "", **headers: str) -> dict[str, Any]:
    with there.http(token) as http:
        answer = http.delete(f"/v1/exports/disk{query}", headers=headers)
    assert answer.status_code == status, answer.text
    return dict(answer.json())


def left(exports: Exports, running: Running) -> tuple[list[str], int]:
    """What is in the runtime directory, and how many seals live."""
    with Client(str(running.socket)) as client:
        seals = client.call(List).result.seals  # type: ignore[union-attr]
    return sorted(path.name for path in exports.directory.iterdir()), len(seals)


def test_who_may_stop_an_export_and_what_is_left(
    there: Front, exports: Exports, running: Running, image: Path
) -> None:
    with exported(exports, image) as info:
        assert exports.ask("stop", "disk").returncode == 0
        by_command = left(exports, running)
    with exported(exports, image) as info:
        for token, status, code in (
            ("viewer", 403, "denied"),
            ("sealer", 403, "denied"),
            ("outside", 404, "no-such-export"),
        ):
            assert stop(there, token, status)["code"] == code
        assert exports.show("disk")["state"] == "serving"
        told = stop(there, "inside", 200, **{"Idempotency-Key": "once"})
        assert told == {
            "type": "export-stopped",
            "name": "disk",
            "driver": "nbd",
            "device": info["device"],
            "file": str(image),
        }
        assert left(exports, running) == by_command == ([], 0)
        assert start_time(info["pid"]) == 0, "its process has not ended"
        # With the key it is answered as before; without it there is nothing to stop.
        assert stop(there, "inside", 200, **{"Idempotency-Key": "once"}) == told
        assert stop(there, "inside", 404)["code"] == "no-such-export"


def test_the_trail_tells_who_stopped_which_export(
    there: Front, exports: Exports, running: Running, image: Path
) -> None:
    with exported(exports, image):
        stop(there, "outside", 404)
        stop(there, "operator", 200, "?force=true")
    told: list[dict[str, Any]] = []

    def recorded() -> bool:
        """The registry writes behind the service."""
        with Client(str(running.socket)) as client:
            entries = client.call(Trail, limit=1000).result.entries  # type: ignore[union-attr]
        told[:] = [entry.data for entry in entries if "stop-export" in str(entry.data)]
        return len(told) >= 2

    until(recorded)
    told.sort(key=lambda data: str(data["outcome"]))
    assert [(data["outcome"], data["principal"], data["name"]) for data in told] == [
        ("done", "operator", "disk"),
        ("no-such-export", "outside", "disk"),
    ]
    assert told[0]["force"] is True


def test_an_export_whose_process_has_died_is_stopped(
    there: Front, exports: Exports, running: Running, image: Path
) -> None:
    with exported(exports, image) as info:
        os.kill(info["pid"], 9)
        assert stop(there, "operator", 200)["name"] == "disk"
        assert left(exports, running)[0] == []


def test_two_at_once_stop_it_once(
    there: Front, exports: Exports, running: Running, image: Path
) -> None:
    def ask(_: int) -> int:
        with there.http("operator") as http:
            return http.delete("/v1/exports/disk").status_code

    with exported(exports, image), ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(ask, range(2)))
        assert answers[0] == 200, answers
        assert left(exports, running) == ([], 0)


def test_the_client_has_a_method(exports: Exports, running: Running, image: Path) -> None:
    with exported(exports, image), Client(str(running.socket)) as client:
        told = client.stop_export("disk")
        assert isinstance(told, ExportStopped)
        assert told.file == str(image)


def test_who_is_no_operator_is_refused(xfs: Path, tmp_path: Path) -> None:
    """At the control socket it is the user that counts."""
    running = Running(tmp_path, [xfs], RISKS + "operators = [12345]\n")
    running.start()
    try:
        running.ready()
        with Client(str(running.socket)) as client, pytest.raises(Refusal) as caught:
            client.call(StopExport, name="disk")
        assert caught.value.code == "denied"
    finally:
        running.end()
