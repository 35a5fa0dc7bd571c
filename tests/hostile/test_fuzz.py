"""The fuzzer of requests (python -m tests.hostile.fuzz), for some seconds and from a fixed seed."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.fuzz.__main__ import run, simulated_service
from tests.hostile.fuzz.tally import Tally

INPUTS = 2000


def test_no_answer_is_wrong(tmp_path: Path) -> None:
    tally = Tally()
    with simulated_service(tmp_path) as (there, paths):
        run(there, paths, "a fixed seed", INPUTS, 0.2, 60, tally)
    assert not tally.wrong, str(tally)
    assert tally.inputs > 100
    assert tally.codes["done"], tally.codes
    assert "Traceback" not in (tmp_path / "service.log").read_text()


def test_what_is_wrong_is_counted(tmp_path: Path) -> None:
    """A description without the status 400, and with another body: each answer of it is found."""
    from tests.hostile.fuzz.__main__ import described
    from tests.hostile.fuzz.drawn import Draw
    from tests.hostile.fuzz.rest import Rest

    other = described()
    for item in other["paths"].values():
        for operation in item.values():
            operation["responses"].pop("400", None)
    tally = Tally()
    with simulated_service(tmp_path) as (there, paths):
        draw = Draw("a fixed seed", paths)
        Rest(there.base, other, ["nobody", "viewer"], draw, tally).run(200, float("inf"))
    assert tally.wrong["undocumented"], str(tally)
