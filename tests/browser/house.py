"""A real file system, its service and the API before it, for the pages of the capabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sealsvc.exports.runtime import Runtime
from tests.api.conftest import TOKEN, write_principals
from tests.api.running import Front, front, wait_for
from tests.browser.conftest import MiB
from tests.exports.exporting import Exports
from tests.integrity.conftest import BLOCK, Ground, attach, give_back, sealed
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running


@dataclass
class House(Ground):
    """The file system and its service, the API before it, and the exports of its files."""

    there: Front
    exports: Exports

    def __init__(self, point: Path, running: Running, there: Front, exports: Exports) -> None:
        super().__init__(point, running)
        self.there, self.exports = there, exports


@contextmanager
def housed(directory: Path) -> Iterator[House]:
    (directory / "exports").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, mounted("xfs") as point:
        patch.setenv("SEALSVC_EXPORTS", str(directory / "exports"))
        roles: dict[str, dict[str, object]] = {
            name: {"role": name, "scopes": ["/"], "token": TOKEN if name == "admin" else name}
            for name in ("admin", "operator", "viewer")
        }
        roles["guest"] = {"role": "operator", "scopes": [f"{point}/guest"], "token": "guest"}
        roles["onlooker"] = {"role": "viewer", "scopes": [f"{point}/guest"], "token": "onlooker"}
        for terms in roles.values():
            terms |= {"holders": ["*"], "requests_per_second": 1000}
        principals = write_principals(directory / "principals.toml", **roles)
        running = Running(directory, [point], RISKS + "[fence]\nsignal_grace = 0.5\n")
        running.start()
        try:
            running.ready()
            exports = Exports(directory / "exports", running.socket)
            with front(directory, principals) as there:
                yield House(point, running, there, exports)
        finally:
            running.end()


@contextmanager
def exported(house: House, name: str, file: str) -> Iterator[dict[str, Any]]:
    """An export, which is stopped at the end if it was not before."""
    info = house.exports.call("create", "--type", "nbd", name, house.file(file, 16 * MiB))
    try:
        yield info
    finally:
        if Runtime(str(house.exports.directory)).find(name) is not None:
            assert house.exports.ask("stop", name).returncode == 0


@contextmanager
def tagged(house: House, file: str) -> Iterator[str]:
    """A file with tags, whose block 20 is damaged behind the service's back."""
    with house.client() as client:
        path = house.file(file)
        seal, fd = sealed(client, path)
        attachment = attach(client, seal)
        place = house.place(client, seal.id, 20 * BLOCK)
        give_back(client, seal, fd)
        house.corrupt(place, b"?" * 16)
        yield attachment.id
        client.pi_detach(attachment.id)


def begin(house: House, noun: str, **body: Any) -> str:
    with house.there.http() as http:
        answer = http.post(f"/v1/{noun}", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


def finished(house: House, job: str) -> dict[str, Any]:
    with house.there.http() as http:
        wait_for(lambda: http.get(f"/v1/jobs/{job}").json()["state"] != "running")
        return dict(http.get(f"/v1/jobs/{job}").json())
