"""docs/dashboard.md shows each page. After a change: ./dev screenshots"""

from __future__ import annotations

import re

from tests.docs.commands import ROOT

PICTURES = ROOT / "docs" / "screenshots"
MENU = ROOT / "api" / "pages" / "index.html"
LARGEST, ALL = 60_000, 700_000  # bytes


def shown() -> list[str]:
    return re.findall(r"screenshots/([\w-]+\.\w+)\)", (ROOT / "docs" / "dashboard.md").read_text())


def test_each_picture_is_there_and_none_is_forgotten() -> None:
    assert sorted(shown()) == sorted(file.name for file in PICTURES.iterdir())


def test_each_page_of_the_menu_is_shown_twice() -> None:
    pages = re.findall(r'href="#/(\w*)"', MENU.read_text())
    assert len(pages) > 5
    for page in (*pages, "seal", "file", "holder", "login"):
        for view in ("desktop", "phone"):
            assert f"{page or 'overview'}-{view}.webp" in shown()


def test_they_are_small() -> None:
    sizes = {file.name: file.stat().st_size for file in PICTURES.iterdir()}
    assert not {name: size for name, size in sizes.items() if size > LARGEST}
    assert sum(sizes.values()) < ALL
