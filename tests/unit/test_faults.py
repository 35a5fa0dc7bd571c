"""The language of SEALSVC_FAULTS, and that its points are all there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sealsvc.core.states import Step
from sealsvc.protocol.base import Keyed, Request
from sealsvc.protocol.seals import Terms
from sealsvc.runtime import faults

SOURCE = Path(faults.__file__).parents[1]


def test_a_fault_at_the_second_time_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_armed", faults.parse("grant:held=errno:ENOSPC@2"))
    faults.point("grant:settled")
    faults.point("grant:held")
    with pytest.raises(OSError, match="No space left"):
        faults.point("grant:held")
    faults.point("grant:held")


@pytest.mark.parametrize(
    "text", ["nothing=kill", "grant:held", "grant:held=explode", "grant:held=kill@x"]
)
def test_what_is_not_understood_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"SEALSVC_FAULTS|invalid literal"):
        faults.parse(text)


def test_each_point_in_the_code_is_listed() -> None:
    text = "".join(path.read_text() for path in SOURCE.rglob("*.py"))
    used = set(re.findall(r'faults\.point\("([^"]+)"\)', text))
    kinds = (*Request.__subclasses__(), *Keyed.__subclasses__(), *Terms.__subclasses__())
    # Of each request control/connection.py makes a point, of each step state_machine.py.
    used |= {f"{kind.__name__.lower()}:answered" for kind in kinds}
    used |= {f"{step}:journalled" for step in Step}
    assert set(faults.POINTS) <= used
    assert {point for point in used - set(faults.POINTS) if not _of_any(point)} == set()


def _of_any(point: str) -> bool:
    return point.endswith((":answered", ":journalled"))
