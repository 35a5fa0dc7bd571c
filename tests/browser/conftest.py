"""A real Chromium before the real API and the real service (on a simulated system)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from sealsvc.protocol.system import Simulate
from tests.api.conftest import TOKEN
from tests.api.running import Front, front, service, simulated
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
AXE = "axe-core@4.10.3"
# Without these it looks for hosts of its maker's, which a closed network refuses.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
]
MiB = 1 << 20

__all__ = ["TOKEN", "Front", "front", "service"]


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    pytest.skip("no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Its event loop counts as running in this thread for as long as it is there."""
    expect.set_options(timeout=PATIENCE * 1000)
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield made
        made.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script, fetched once; it is not part of the project."""
    directory = ROOT / "build" / "axe"
    script = directory / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        if shutil.which("npm") is None:
            pytest.skip("no npm to fetch axe-core with")
        directory.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(directory), AXE]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            pytest.skip(f"axe-core cannot be fetched: {done.stderr[-200:]}")
    return script.read_text()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    directory = tmp_path_factory.mktemp("shown")
    config = directory / "sealsvc.toml"
    config.write_text(f'[registry]\ndirectory = "{directory}/registry"\n')
    with simulated(directory, "--config", str(config)) as found:
        with found.client() as control, found.http() as http:
            for name in ("db", "volume-1", "volume-2"):
                path = f"/sim/{name}"
                control.call(Simulate, action="create", path=path, size=64 * MiB)
                body = {"path": path, "holder": {"pid": os.getpid()}, "kind": "shared", "tag": name}
                if name == "volume-2":  # a conflict with it waits for as long as a page takes
                    body["grace"] = 300.0
                http.post("/v1/seals", json=body).raise_for_status()
        yield found


@pytest.fixture
def page(browser: Browser, there: Front) -> Iterator[Page]:
    """Not logged in; what goes wrong in the page fails the test."""
    context = browser.new_context(base_url=there.base, viewport={"width": 1280, "height": 800})
    shown = context.new_page()
    wrong: list[str] = []
    shown.on("pageerror", lambda error: wrong.append(str(error)))
    shown.on(
        "console",
        lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None,
    )
    foreign: list[str] = []
    shown.on("request", lambda r: None if r.url.startswith(there.base) else foreign.append(r.url))
    shown.set_default_timeout(PATIENCE * 1000)
    yield shown
    context.close()
    assert not wrong, wrong
    assert not foreign, "nothing may be asked of others"


def enter(page: Page, token: str = TOKEN, where: str = "") -> None:
    page.goto(f"/dashboard/{where}")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_selector("#link.live")


def picture(page: Page, name: str) -> None:
    """Kept as an artefact. (Those of the docs are made by ./dev screenshots.)"""
    directory = ROOT / "build" / "screenshots"
    directory.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=directory / f"{name}.png", animations="disabled")
