"""The dashboard before a real file system: what the doctor measures is what is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.api.conftest import TOKEN, write_principals
from tests.api.running import Front, front
from tests.browser.conftest import enter, picture
from tests.support.service import RISKS, serving

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def measured(xfs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("measured")
    root = {"role": "admin", "scopes": ["/"], "holders": ["*"], "token": TOKEN}
    root["requests_per_second"] = 1000
    principals = write_principals(directory / "principals.toml", root=root)
    with serving(directory, [xfs], RISKS), front(directory, principals) as found:
        yield found


def test_the_doctor_is_started_and_its_heat_map_drawn(
    browser: Browser, measured: Front, xfs: Path
) -> None:
    context = browser.new_context(base_url=measured.base, viewport={"width": 1280, "height": 800})
    page = context.new_page()
    enter(page, where="#/filesystems")
    section = page.get_by_role("region", name=str(xfs))
    expect(section.get_by_text("Not measured in this run")).to_be_visible()
    section.get_by_role("button", name="Measure the coverage here").click()
    progress = page.get_by_role("progressbar", name="Progress of the doctor")
    expect(progress).to_be_visible()
    expect(section.get_by_role("button", name="Measure the coverage here")).to_be_disabled()
    expect(section.locator("td.heat").first).to_be_visible(timeout=240_000)
    expect(progress).to_have_count(0)
    with measured.http() as http:
        told = http.get("/v1/coverage", params={"path": str(xfs), "limit": 1000}).json()
        rows, start = told["rows"], told["next"]
        while start:
            told = http.get("/v1/coverage", params={"path": str(xfs), "start": start}).json()
            rows, start = rows + told["rows"], told["next"]
    assert len(rows) > 300
    for result in {row["result"] for row in rows}:
        cells = {(r["operation"], r["kind"], r["conflict"]) for r in rows if r["result"] == result}
        expect(section.locator(f"td.heat.{result}")).to_have_count(len(cells))
    expect(section.get_by_text(re.compile("^Measured "))).to_be_visible()
    picture(page, "coverage-measured")
    context.close()
