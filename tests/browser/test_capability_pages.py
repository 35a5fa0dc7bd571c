"""Exports, integrity and copies as their users meet them: of real files on a real file system."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from sealsvc.exports.base import Spec
from sealsvc.exports.nbd import Nbd
from sealsvc.exports.runtime import Record, Runtime
from sealsvc.protocol.seals import List, RecallSeals
from tests.api.running import wait_for
from tests.browser.conftest import MiB, enter, picture
from tests.browser.house import House, begin, exported, finished, housed, tagged
from tests.browser.test_dashboard import violations
from tests.integrity.conftest import BLOCK
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]
needs_nbd = pytest.mark.skipif(bool(Nbd.missing()), reason=f"no NBD exports: {Nbd.missing()}")
LISTS = ["#/exports", "#/integrity", "#/copies"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with housed(tmp_path_factory.mktemp("house")) as made:
        yield made


@pytest.fixture
def page(browser: Browser, house: House) -> Iterator[Page]:
    """What goes wrong in the page fails the test."""
    with opened(browser, house) as shown:
        yield shown


@contextmanager
def opened(browser: Browser, house: House, **terms: Any) -> Iterator[Page]:
    terms = {"viewport": {"width": 1280, "height": 800}, **terms}
    context = browser.new_context(base_url=house.there.base, **terms)
    shown = context.new_page()
    wrong: list[str] = []
    shown.on("pageerror", lambda error: wrong.append(str(error)))
    shown.set_default_timeout(PATIENCE * 1000)
    yield shown
    context.close()
    assert not wrong, wrong


def row(page: Page, table: str, text: str) -> Locator:
    return page.get_by_role("region", name=table).locator("tbody tr").filter(has_text=text)


def test_where_there_is_nothing_the_page_says_how_to_begin(page: Page) -> None:
    enter(page, "guest", "#/exports")
    for name, command in (
        ("Exports", "sealctl export create --type nbd NAME FILE"),
        ("Integrity", "sealctl pi attach SEAL --profile crc32c-4k"),
        ("Copies", "sealctl copy SOURCE DESTINATION"),
    ):
        page.get_by_role("navigation", name="Pages").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
        expect(page.get_by_text(command)).to_be_visible()
    picture(page, "copies-none")


def test_who_may_see_no_copies_is_told(page: Page) -> None:
    enter(page, "onlooker", "#/copies")
    expect(page.get_by_text("Copies are shown to operators")).to_be_visible()


@needs_nbd
def test_an_export_is_shown_with_what_it_did_and_stopped(page: Page, house: House) -> None:
    with exported(house, "disk", "disk-\u202egnp.img") as info:
        if program := shutil.which("nbdcopy"):
            subprocess.run([program, info["device"], "null:"], check=True, timeout=60)
        with house.client() as client:
            client.call(RecallSeals, path=info["file"])
        wait_for(lambda: bool(house.exports.show("disk")["pauses"]["count"]))
        told = house.exports.show("disk")
        enter(page, "operator", "#/exports")
        shown = row(page, "Exports", "disk")
        expect(shown.locator(".state")).to_have_text("serving")
        expect(shown).to_contain_text("disk-\\u202egnp.img")
        expect(shown).to_contain_text(info["device"])
        expect(shown.get_by_role("link", name=told["seal"])).to_be_visible()
        expect(shown).to_contain_text("1: half within")
        reads = told["latency"].get("read", {}).get("count", 0)
        expect(shown.locator("[data-name=requests]")).to_have_text(str(round(reads)))
        picture(page, "exports")
        shown.get_by_role("link", name="disk", exact=True).click()
        expect(page.get_by_role("heading", name="Export disk")).to_be_visible()
        expect(page.get_by_text("a recall leaves 10.0 s; the initiator")).to_be_visible()
        expect(page.get_by_role("img", name="pauses: 1 in all")).to_be_visible()
        if reads:
            expect(page.get_by_role("img", name=f"read: {round(reads)} in all")).to_be_visible()
        picture(page, "export")
        page.get_by_role("button", name="Stop export disk").click()
        asked = page.get_by_role("dialog")
        expect(asked).to_contain_text(f"process {info['pid']} gets SIGTERM")
        asked.get_by_role("button", name="Cancel").click()
        expect(asked).to_have_count(0)
        assert house.exports.show("disk")["state"] == "serving"
        page.get_by_role("button", name="Stop export disk").click()
        page.get_by_role("dialog").get_by_role("button", name="Stop it").click()
        expect(page.get_by_text("No file is exported.")).to_be_visible()
        assert list(house.exports.directory.iterdir()) == []
        with house.client() as client:
            assert client.call(List).result.seals == []  # type: ignore[union-attr]


@needs_nbd
def test_who_may_not_stop_an_export_has_no_button(page: Page, house: House) -> None:
    with exported(house, "kept", "kept.img"):
        enter(page, "viewer", "#/exports")
        expect(row(page, "Exports", "kept")).to_be_visible()
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
        page.goto("/dashboard/#/exports/kept")
        expect(page.get_by_role("heading", name="Export kept")).to_be_visible()
        expect(page.get_by_role("button", name="Stop")).to_have_count(0)
        page.get_by_role("button", name="Log out").click()
        enter(page, "guest", "#/exports/kept")
        expect(page.locator("#refused")).to_contain_text("there is no export kept")


def test_many_exports_come_in_pages_and_dead_ones_have_the_next_step(
    page: Page, house: House
) -> None:
    """Records as processes leave them that are killed."""
    process = subprocess.Popen(["true"])
    process.wait()
    runtime = Runtime(str(house.exports.directory))
    names = [f"dead-{number:03}" for number in range(130)]
    for name in names:
        spec = Spec(name=name, type="nbd", file=f"{house.point}/{name}")
        runtime.write(Record(spec=spec, pid=process.pid, start_time=1))
    try:
        enter(page, where="#/exports")
        pages = page.get_by_role("navigation", name="Pages of exports")
        expect(pages).to_contain_text("1 to 100 of 130")
        pages.get_by_role("button", name="Next page").click()
        expect(page.locator("tbody tr")).to_have_count(30)
        last = row(page, "Exports", "dead-129")
        expect(last.locator(".state")).to_have_text("dead")
        expect(last).to_contain_text("sealctl export recover dead-129")
    finally:
        for name in names:
            runtime.remove(name)


def test_corruption_is_shown_with_its_evidence(page: Page, house: House) -> None:
    with tagged(house, "tagged-\u202egnp") as attachment:
        enter(page, "operator", "#/integrity")
        shown = row(page, "Files with tags", "tagged-\\u202egnp")
        expect(shown).to_contain_text("crc32c-4k")
        expect(shown).to_contain_text("256 clean")
        expect(shown).to_contain_text("never")
        shown.get_by_role("button", name="Scrub").click()
        expect(shown.get_by_text("all of it, 1 errors")).to_be_visible()
        with house.there.http() as http:
            errors = http.get("/v1/integrity/errors").json()["errors"]
        (error,) = [error for error in errors if error["attachment"] == attachment]
        found = row(page, "What was found", "tagged-").first
        expect(found).to_contain_text("corrupt")
        expect(found).to_contain_text(f"block 20: {20 * BLOCK} + {BLOCK}")
        expect(found).to_contain_text(f"expected {error['expected']}, found {error['found']}")
        expect(found).to_contain_text(str(error["physical"]))
        picture(page, "integrity")
        shown.get_by_role("link").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("tagged-\\u202egnp")
        page.get_by_role("button", name="Verify").click()
        # What was found corrupt is suspect from then on.
        report = "suspect 255 good, 1 suspect"
        expect(page.locator("#report")).to_contain_text(report)
        expect(page.get_by_text(f"sealctl pi bless {attachment}")).to_be_visible()
        drawn = page.get_by_role("img", name="Blocks of the attachment: something was found")
        expect(drawn.locator(".wrong")).to_have_count(2)
        place = f"block 20: {20 * BLOCK} + {BLOCK}"
        titles = drawn.locator(".wrong title").all_text_contents()
        assert titles == [f"suspect: {place}", f"corrupt: {place}"]
        picture(page, "attachment")


def test_who_may_not_scrub_has_no_button(page: Page, house: House) -> None:
    with tagged(house, "looked-at") as attachment:
        enter(page, "viewer", "#/integrity")
        expect(row(page, "Files with tags", "looked-at")).to_be_visible()
        for name in ("Scrub", "Verify"):
            expect(page.get_by_role("button", name=name)).to_have_count(0)
        page.get_by_role("button", name="Log out").click()
        enter(page, "guest", f"#/integrity/{attachment}")
        expect(page.locator("#refused")).to_contain_text("there is no attachment")


def test_a_copy_is_followed_and_cancelled(page: Page, house: House) -> None:
    source, target = house.file("slow", 64 * MiB), house.file("slow-copy")
    terms = {"throttle": MiB // 4, "strategies": ["plain"], "seals": False}
    job = begin(house, "copies", source=str(source), destination=str(target), **terms)
    enter(page, "operator", "#/copies")
    shown = row(page, "Copies", job[-6:])
    expect(shown.locator("[data-name=from]")).to_have_text(str(source))
    expect(shown.locator("[data-name=to]")).to_have_text(str(target))
    expect(shown.get_by_role("progressbar")).to_be_visible()
    expect(shown.locator("[data-name=progress]")).to_contain_text("of 64 MiB")
    expect(shown.locator("[data-name=rate]")).to_contain_text("/s")
    picture(page, "copies")
    shown.get_by_role("button", name="Cancel").click()
    asked = page.get_by_role("dialog")
    expect(asked).to_contain_text(f"The copy to {target} is ended where it is")
    asked.get_by_role("button", name="Cancel it").click()
    expect(shown.locator(".state")).to_have_text("cancelled")
    shown.get_by_role("link").click()
    expect(page.get_by_text("not whole")).to_be_visible()
    expect(page.get_by_text("sealctl copy --resume")).to_be_visible()
    expect(row(page, "Parts of the copy", "plain").first).to_be_visible()


def test_a_finished_copy_tells_its_strategies_and_the_trust(page: Page, house: House) -> None:
    source, target = house.file("a", 4 * MiB), house.point / "b"
    target.touch()
    with house.there.http() as http:
        body = {"source": str(source), "destination": str(target), "whole": True, "verify": True}
        job = begin(house, "copies", **body, strategies=["direct"])
        done = finished(house, job)
        planned = finished(house, begin(house, "copies", **body, dry_run=True))
        rates = http.get("/v1/copy-trust").json()["rows"]
    assert done["state"] == "done", done
    assert target.read_bytes() == source.read_bytes()
    enter(page, "viewer", f"#/copies/{job}")
    expect(page.get_by_role("heading", name="Copy")).to_be_visible()
    expect(page.get_by_text("4 MiB of 4 MiB: whole")).to_be_visible()
    (name, *_) = done["result"]["bytes_by_strategy"]
    expect(row(page, "Parts of the copy", name).first).to_contain_text("4 MiB")
    expect(page.get_by_text("yes, equal")).to_be_visible()
    picture(page, "copy")
    page.goto(f"/dashboard/#/copies/{planned['id']}")
    expect(page.get_by_role("heading", name="Plan")).to_be_visible()
    expect(row(page, "Parts of the plan", planned["result"]["plan"][0]["strategy"])).to_be_visible()
    page.goto("/dashboard/#/copies")
    for rate in rates:
        expect(row(page, "Strategies", rate["strategy"]).first).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_have_count(0)


def test_a_relocation_is_shown_with_its_result(page: Page, house: House) -> None:
    path = house.file("moved", 2 * MiB)
    job = begin(house, "relocations", path=str(path), goal={"align": 2 * MiB})
    ended = finished(house, job)
    assert ended["state"] == "done", ended
    enter(page, where="#/copies")
    shown = row(page, "Relocations", job[-6:])
    expect(shown).to_contain_text(str(path))
    shown.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Relocation")).to_be_visible()
    place = f"{ended['result']['before']['extents']} extents, the first at"
    expect(page.get_by_text(place).first).to_be_visible()


@contextmanager
def furnished(house: House) -> Iterator[list[str]]:
    """Something on each page; their addresses."""
    target = house.file("furniture-copy")
    source = house.file("furniture")
    job = begin(house, "copies", source=str(source), destination=str(target))
    finished(house, job)
    runtime = Runtime(str(house.exports.directory))
    spec = Spec(name="furniture", type="nbd", file=str(source))
    runtime.write(Record(spec=spec, pid=os.getpid(), start_time=1))
    try:
        with tagged(house, "furniture-tags") as attachment, house.client() as client:
            client.pi_verify(attachment=attachment)
            yield [
                *LISTS,
                "#/exports/furniture",
                f"#/integrity/{attachment}",
                f"#/copies/{job}",
            ]
    finally:
        runtime.remove("furniture")


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, house: House) -> None:
    small = {"width": 375, "height": 740}
    with furnished(house) as places, opened(browser, house, viewport=small) as page:
        enter(page, where="#/exports")
        for where in places:
            page.goto(f"/dashboard/{where}")
            page.wait_for_selector("main h1")
            page.wait_for_timeout(200)
            wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{where} is {wide} px wider than the screen"
        picture(page, "copy-phone")


def test_the_pages_are_reached_by_keyboard(page: Page, house: House) -> None:
    with furnished(house):
        enter(page, "operator")
        for where, wanted in (
            ("#/exports", "Stop export furniture"),
            ("#/integrity", "Scrub"),
            ("#/copies", "Copies, the newest first"),
        ):
            page.goto(f"/dashboard/{where}")
            expect(page.locator("h1")).to_be_focused()
            reached = []
            for _ in range(25):
                page.keyboard.press("Tab")
                reached.append(
                    page.evaluate("document.activeElement.ariaLabel || document.activeElement.id")
                )
            assert any(str(name).startswith(wanted) for name in reached), reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_them(browser: Browser, house: House, axe: str, scheme: str) -> None:
    found = []
    with (
        furnished(house) as places,
        opened(browser, house, color_scheme=scheme, bypass_csp=True) as page,
    ):
        enter(page, where="#/exports")
        for where in places:
            page.goto(f"/dashboard/{where}")
            page.wait_for_selector("main h1")
            page.wait_for_timeout(200)
            found += [f"{where}: {told}" for told in violations(page, axe)]
    assert not found, "\n".join(found)
