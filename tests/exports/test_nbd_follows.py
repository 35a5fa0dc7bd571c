"""An export follows its file where others move it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.exports.nbd import Nbd
from sealsvc.protocol.admin import JobState
from sealsvc.protocol.relocation import Goal
from tests.copies.relocating import fragmented, relocated
from tests.exports.exporting import Exports
from tests.exports.loading import loaded
from tests.support.service import Running
from tests.support.waiting import until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(Nbd.missing()), reason=f"no NBD exports: {Nbd.missing()}"),
]


def pieces(exports: Exports, file: Path) -> list[dict[str, int]]:
    found: list[dict[str, int]] = json.loads(exports.map("--static", "json", file))["pieces"]
    return found


@pytest.mark.parametrize("io", ["direct", "mapped"])
def test_a_relocation_is_a_pause(exports: Exports, image: Path, running: Running, io: str) -> None:
    fragmented(image, 256)
    with (
        exports.serving("nbd", "disk", image, "--io", io) as info,
        Client(str(running.socket)) as client,
    ):
        before = pieces(exports, image)
        with loaded(info["device"]):
            job = relocated(client, image, Goal(to=str(image.parent)))
            assert job.state is JobState.DONE, job
            assert job.result["moved"]
            until(lambda: exports.show("disk")["state"] == "serving")
        after = pieces(exports, image)
        assert {piece["physical"] for piece in after}.isdisjoint(
            piece["physical"] for piece in before
        )
        shown = exports.show("disk")
        assert shown["pauses"]["count"] >= 1
        assert shown["counters"]["errors"] == 0
