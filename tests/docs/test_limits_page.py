"""docs/limits.md is the table of limits. After a change: python tests/docs/test_limits_page.py"""

from __future__ import annotations

from pathlib import Path

from sealsvc.runtime.config import LimitsSection
from sealsvc.service.availability import TABLE, page
from sealsvc_api import availability as http

PAGE = Path(__file__).parents[2] / "docs" / "limits.md"


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text() == page() + http.section()


def test_every_key_of_the_section_is_in_it() -> None:
    settings = {row.setting for row in TABLE}
    assert {f"limits.{name}" for name in LimitsSection.__struct_fields__} <= settings


def test_every_limit_of_the_api_is_in_it() -> None:
    options = {str(row[1]) for row in http.TABLE}
    assert {"--max-connections", "--max-listeners", "`requests_per_second`"} <= options


if __name__ == "__main__":
    PAGE.write_text(page() + http.section())
