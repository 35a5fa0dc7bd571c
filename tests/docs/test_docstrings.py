"""Every part of the public surface is documented, and the check of that finds what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import docstrings

GOOD = '''"""About."""
class Box:
    """A box of `length` bytes."""
    length: int
    def take(self, timeout: float) -> None:
        """Take it within `timeout` seconds. Raises ValueError."""
        raise ValueError("no")
    def _own(self): pass
'''


@pytest.fixture
def surface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(docstrings, "ROOT", tmp_path)
    for folder in (*docstrings.SURFACE, docstrings.ROUTES):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path / docstrings.SURFACE[0] / "box.py"


def test_the_public_surface_is_documented() -> None:
    count, faults = docstrings.measured()
    assert not faults
    assert count > 400, "the surface was not found"


def test_nothing_is_wrong_with_what_says_all(surface: Path) -> None:
    surface.write_text(GOOD)
    assert docstrings.measured() == (3, [])


@pytest.mark.parametrize(
    ("said", "instead", "fault"),
    [
        ('"""About."""\n', "", "the module has no docstring"),
        ('"""A box of `length` bytes."""', "", "Box has no docstring"),
        ("bytes", "items", "Box names no unit of length"),
        ("seconds. Raises ValueError", "seconds", "does not say that it raises ValueError"),
        ("A box", "A box of the kernel", "cites no source of 'kernel'"),
    ],
)
def test_what_is_missing_is_named(surface: Path, said: str, instead: str, fault: str) -> None:
    surface.write_text(GOOD.replace(said, instead))
    _, faults = docstrings.measured()
    assert any(fault in each for each in faults), faults


def test_a_source_may_be_a_version_a_page_or_a_file(surface: Path) -> None:
    for source in ("Linux 6.7", "userfaultfd(2)", "fs/locks.c", "RFC 8881"):
        surface.write_text(GOOD.replace("A box", f"A box of the kernel ({source})"))
        assert docstrings.measured()[1] == []


def test_a_route_has_a_summary(surface: Path) -> None:
    surface.write_text(GOOD)
    routes = docstrings.ROOT / docstrings.ROUTES / "boxes.py"
    routes.write_text(
        '@router.get("/a", summary="Boxes")\ndef a(): ...\n\n@router.put("/b")\ndef b(): ...\n'
    )
    count, faults = docstrings.measured()
    assert count == 5
    assert len(faults) == 1
    assert "b is a route without a summary" in faults[0]
