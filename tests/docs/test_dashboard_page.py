"""docs/dashboard.md shows each page. After a change: ./dev screenshots"""

from __future__ import annotations

import re

from tests.docs.commands import ROOT

PICTURES = ROOT / "docs" / "screenshots"
PAGES = re.findall(
    r'<a href="#/(\w*)">', (ROOT / "api/sealsvc_api/pages/index.html").read_text()
)  # of the menu
DETAILS = ("seal", "file", "holder", "export", "attachment", "copy", "login")
LARGEST, ALL = 60_000, 1_000_000  # bytes


def shown() -> list[str]:
    return re.findall(r"screenshots/([\w-]+\.\w+)\)", (ROOT / "docs" / "dashboard.md").read_text())


def test_each_picture_is_there_and_none_is_forgotten() -> None:
    assert sorted(shown()) == sorted(file.name for file in PICTURES.iterdir())


def test_each_page_is_shown_twice() -> None:
    assert len(PAGES) >= 9
    names = [*(page or "overview" for page in PAGES), *DETAILS]
    pictures = {f"{name}-{view}.webp" for name in names for view in ("desktop", "phone")}
    assert pictures <= set(shown())


def test_they_are_small() -> None:
    sizes = {file.name: file.stat().st_size for file in PICTURES.iterdir()}
    assert not {name: size for name, size in sizes.items() if size > LARGEST}
    assert sum(sizes.values()) < ALL
