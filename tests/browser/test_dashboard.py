"""The dashboard as its users meet it."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from sealsvc.protocol.seals import Grant, Return
from sealsvc.protocol.system import Audit, Simulate
from tests.api.conftest import write_principals
from tests.api.running import Front, front, service, wait_for
from tests.browser.conftest import TOKEN, MiB, enter, picture
from tests.support.waiting import PATIENCE

PAGES = ["", "#/seals", "#/files", "#/holders", "#/filesystems", "#/events"]


@contextmanager
def intruder(there: Front, path: str) -> Iterator[None]:
    """An operation that conflicts, and waits until its seal is returned."""

    def intrude() -> None:
        with there.client() as script:
            script.call(Simulate, action="conflict", path=path, length=4096, pid=1, timeout=300)

    thread = threading.Thread(target=intrude)
    thread.start()
    try:
        yield
    finally:
        with there.http() as http, there.client() as control:
            for seal in http.get("/v1/seals", params={"path": path}).json()["seals"]:
                control.call(Return, seal=seal["id"])
        thread.join(PATIENCE)


def test_a_wrong_token_is_told(page: Page) -> None:
    page.goto("/dashboard/")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert").filter(has_text="not known")).to_be_visible()
    picture(page, "login")


def test_logging_in_and_out(page: Page) -> None:
    enter(page)
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    assert page.evaluate("document.cookie") == "", "no script can read the session"
    page.reload()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_label("Token")).to_be_visible()
    page.reload()
    expect(page.get_by_label("Token")).to_be_visible()


def test_a_conflict_is_seen_while_it_happens(page: Page, there: Front) -> None:
    """Without a click: the page is told."""
    enter(page)
    expect(page.get_by_text("Nothing waits for a seal.")).to_be_visible()
    with intruder(there, "/sim/volume-2"):
        waiting = page.get_by_role("region", name="Operations that wait")
        expect(waiting.get_by_text("fallocate-punch-hole")).to_be_visible()
        recalls = page.get_by_role("region", name="Recalls in flight")
        expect(recalls.get_by_text("/sim/volume-2")).to_be_visible()
        # Whom it waits for, and until when.
        expect(waiting.get_by_role("link", name="volume-2", exact=True)).to_be_visible()
        expect(waiting.get_by_role("link", name=str(os.getpid()))).to_be_visible()
        expect(waiting.get_by_text("then it is refused (EBUSY)")).to_be_visible()
        expect(waiting.locator("[data-name=since]")).to_have_text(re.compile(r"\d+:\d\d:\d\d"))
        # Distributions say in words what they draw.
        grants = page.get_by_role("img", name="grant: ")
        expect(grants).to_have_accessible_name(re.compile(r"\d+ in all, half within .*s, 99 % "))
        assert grants.locator("text").all_text_contents(), "bars have their numbers and bounds"
        picture(page, "overview")
    expect(page.get_by_text("Nothing waits for a seal.")).to_be_visible()
    page.goto("/dashboard/#/events")
    listed = page.get_by_role("list", name="Events")
    expect(listed.get_by_text("conflict-ended").first).to_be_visible()
    picture(page, "events")


def test_searching_and_recalling_by_a_click(page: Page, there: Front) -> None:
    enter(page, where="#/seals")
    rows = page.locator("tbody tr")
    expect(rows.nth(1)).to_be_visible()
    page.get_by_label("Search").press_sequentially("volume-1", delay=20)
    expect(rows).to_have_count(1)
    expect(page.get_by_label("Search")).to_be_focused()
    page.get_by_label("State").select_option("lost")
    expect(page.get_by_text("No seal matches.")).to_be_visible()
    page.get_by_label("State").select_option("")
    picture(page, "seals")
    page.get_by_role("button", name="Recall seal").click()
    # It is said whom it asks, and nothing is done by a slip of the hand.
    asked = page.get_by_role("dialog")
    expect(asked).to_contain_text("/sim/volume-1. It has 10.0 s to give it back; after that")
    asked.get_by_role("button", name="Cancel").click()
    expect(asked).to_have_count(0)
    expect(rows.first.locator(".state")).to_have_text("granted")
    page.get_by_role("button", name="Recall seal").click()
    page.get_by_role("dialog").get_by_role("button", name="Recall it").click()
    expect(rows.first.locator(".state")).to_have_text("recalled")
    with there.http() as http:
        (seal,) = http.get("/v1/seals", params={"path": "/sim/volume-1"}).json()["seals"]
        assert seal["reason"] == "dashboard"


def test_no_name_reads_as_another(page: Page, there: Front) -> None:
    """U+202E would show "gnp.exe" as "exe.png"; the pages show it escaped."""
    path = "/sim/report-\u202egnp.exe\x1b[2J"
    with there.client() as control, there.http() as http:
        control.call(Simulate, action="create", path=path, size=1 << 20)
        body = {"path": path, "holder": {"pid": os.getpid()}, "kind": "shared"}
        seal = http.post("/v1/seals", json=body).json()["id"]
        enter(page)
        for where in ("#/seals", "#/files", f"#/seals/{seal}", "#/events"):
            page.goto(f"/dashboard/{where}")
            expect(page.get_by_text("report-\\u202egnp.exe\\x1b[2J").first).to_be_visible()
            text = page.inner_text("body")
            assert "\u202e" not in text
            assert "\x1b" not in text
        control.call(Return, seal=seal)


def test_a_principal_with_scopes_sees_its_pages(page: Page) -> None:
    enter(page, "guest")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    expect(page.get_by_text("How long it takes")).to_have_count(0)
    page.goto("/dashboard/#/filesystems")
    expect(page.get_by_role("heading", name="File systems")).to_be_visible()


def test_one_seal_in_full(page: Page) -> None:
    enter(page, where="#/seals")
    row = page.locator("tbody tr").filter(has_text="/sim/db").first
    row.get_by_role("link").first.click()
    expect(page.get_by_role("heading", name="Seal")).to_be_visible()
    expect(page.get_by_text("/sim/db").first).to_be_visible()
    life = page.get_by_role("list", name="Steps of its life")
    expect(life.get_by_text("granted").first).to_be_visible()
    picture(page, "seal")


def test_a_viewer_is_offered_nothing_to_click(page: Page) -> None:
    enter(page, "viewer", "#/seals")
    expect(page.locator("tbody tr").first).to_be_visible()
    expect(page.get_by_role("button", name="Recall seal")).to_have_count(0)
    expect(page.get_by_role("button", name="Return seal")).to_have_count(0)


def test_a_files_map_is_drawn_and_drift_shows(page: Page, there: Front) -> None:
    enter(page, where="#/files")
    page.get_by_role("link", name="/sim/db").wait_for()
    picture(page, "files")
    page.get_by_role("link", name="/sim/db").click()
    drawing = page.get_by_role("img", name="Extent map")
    expect(drawing).to_be_visible()
    expect(page.locator("svg .sealed")).to_have_count(1)
    expect(page.locator("#drift")).to_have_count(0)
    with there.client() as control:
        control.call(Simulate, action="drift", path="/sim/db")
    expect(page.locator("#drift")).to_be_visible()
    expect(page.locator("svg .extent.drift").first).to_be_attached()
    picture(page, "file")


def test_holders_and_file_systems(page: Page) -> None:
    enter(page, where="#/holders")
    page.locator("tbody a").first.wait_for()
    picture(page, "holders")
    page.locator("tbody a").first.click()
    expect(page.get_by_role("heading", name="Holder")).to_be_visible()
    picture(page, "holder")
    page.get_by_role("link", name="File systems").click()
    expect(page.get_by_role("heading", name="/sim")).to_be_visible()
    page.get_by_role("button", name="Measure the coverage here").click()
    expect(page.locator("#said")).to_contain_text("nothing to measure")


COVERAGE = {
    "type": "coverage",
    "mount": "/sim",
    "measured_at": 1767225600.0,
    "rows": [
        {
            "operation": operation,
            "kind": kind,
            "conflict": conflict,
            "enforcer": "fanotify+bpf",
            "result": "not-covered" if operation == "swapext" and kind == "shared" else result,
            "map_changed": False,
            "note": "",
        }
        for operation in ("truncate", "fallocate-punch-hole", "ficlone", "swapext", "pread")
        for kind in ("exclusive", "shared")
        for conflict, result in (("wait", "waits"), ("refuse", "refused"))
    ],
}


def test_coverage_is_a_heat_map(page: Page) -> None:
    """Of rows as the doctor reports them; a simulation has nothing to measure."""
    page.route("**/v1/coverage?*", lambda route: route.fulfill(json=COVERAGE))
    enter(page, where="#/filesystems")
    expect(page.locator("td.heat.waits")).to_have_count(9)
    expect(page.locator("td.heat.not-covered")).to_have_count(2)
    expect(page.get_by_text("NOT COVERED").first).to_be_visible()
    picture(page, "filesystems")


def test_what_is_not_there_is_told(page: Page) -> None:
    enter(page, where=f"#/seals/{'f' * 24}")
    expect(page.locator("#refused")).to_contain_text("there is no seal")
    page.goto("/dashboard/#/nothing")
    expect(page.locator("#refused")).to_contain_text("no such page")
    expect(page.locator("#banner")).to_be_hidden()
    page.goto("/dashboard")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def test_who_is_not_logged_in_is_shown_no_menu(page: Page) -> None:
    page.goto("/dashboard/")
    expect(page.get_by_label("Token")).to_be_visible()
    expect(page.get_by_role("navigation", name="Pages")).to_be_hidden()
    expect(page.locator("#link")).to_be_hidden()


def test_connecting_is_told_from_down(page: Page) -> None:
    page.route("**/v1/events?*", lambda _: None)  # neither answered nor refused
    page.goto("/dashboard/")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    link = page.locator("#link")
    expect(link).to_have_text("connecting")
    page.unroute("**/v1/events?*")  # what was held goes on
    expect(link).to_have_text("live")
    page.route("**/v1/events?*", lambda route: route.abort())
    page.reload()
    expect(link).to_have_text("down, trying again")


def test_long_lists_come_in_pages(page: Page, there: Front) -> None:
    """And say how long they are; the page that is shown stays when it is drawn anew."""
    path = "/sim/many"
    made = []
    with there.client() as control:
        control.call(Simulate, action="create", path=path, size=64 * MiB)
        for number in range(230):
            where = {"offset": number * 65536, "length": 4096}
            reply = control.call(Grant, path=path, kind="shared", tag="many", **where)
            for fd in reply.fds:
                os.close(fd)
            made.append(reply.seal.id)
        enter(page, where="#/seals")
        page.get_by_label("Search").fill("many")
        expect(page.locator("#count")).to_have_text("230 seals")
        pages = page.get_by_role("navigation", name="Pages of seals")
        expect(pages).to_contain_text("1 to 100 of 230")
        pages.get_by_role("button", name="Next page").click()
        pages.get_by_role("button", name="Next page").click()
        expect(pages).to_contain_text("201 to 230 of 230")
        expect(page.locator("tbody tr")).to_have_count(30)
        expect(pages.get_by_role("button", name="Next page")).to_be_disabled()
        picture(page, "seals-many")
        page.goto("/dashboard/#/files")
        page.get_by_role("heading", name="Files").wait_for()
        page.get_by_role("link", name=path).click()
        expect(page.locator("#left-out")).to_contain_text("210 of 230 seals")
        page.get_by_role("button", name="Recall every seal").click()
        expect(page.get_by_role("dialog")).to_contain_text("all 230 seals of /sim/many")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        for seal in made:
            control.call(Return, seal=seal)


def test_a_seal_that_nobody_can_recall_has_the_next_step(page: Page, there: Front) -> None:
    path = "/sim/lost"
    with there.client() as control:
        control.call(Simulate, action="create", path=path, size=MiB)
        reply = control.call(Grant, path=path, kind="shared")
        for fd in reply.fds:
            os.close(fd)
        control.call(Simulate, action="drift", path=path)
        control.call(Audit)
        enter(page, where="#/seals")
        page.get_by_label("Search").fill("lost")
        row = page.locator("tbody tr").filter(has_text=path)
        expect(row.locator(".state")).to_have_text("lost")
        expect(row.get_by_role("button", name="Recall seal")).to_have_count(0)
        expect(row).to_contain_text("must not use it")
        page.goto("/dashboard/#/")
        alarm = page.get_by_role("region", name="Alarms").locator("tbody tr").filter(has_text=path)
        alarm.first.get_by_role("button", name="Acknowledge").click()
        expect(alarm.first).to_contain_text("admin")
        control.call(Return, seal=reply.seal.id)


def test_a_holder_has_a_time_and_no_ticks(page: Page, there: Front) -> None:
    enter(page, where=f"#/holders/{os.getpid()}")
    expect(page.get_by_role("heading", name="Holder")).to_be_visible()
    expect(page.get_by_text("ticks")).to_have_count(0)
    with there.http() as http:
        told = http.get(f"/v1/holders/{os.getpid()}").json()
    age = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    began = time.time() - up + age / os.sysconf("SC_CLK_TCK")
    assert abs(told["started_at"] - began) < 2
    assert told["started_at"] < time.time()


def test_a_long_map_is_drawn_to_its_end(page: Page, there: Front) -> None:
    """In pieces that are spread over the file, which is said; and none of them drifts by that."""
    path = "/sim/long"
    with there.client() as control, there.http() as http:
        control.call(Simulate, action="create", path=path, size=5000 * 16 * MiB)
        reply = control.call(Grant, path=path, kind="shared")
        for fd in reply.fds:
            os.close(fd)
        [key] = (f["key"] for f in http.get("/v1/files").json()["files"] if f["path"] == path)
        enter(page, where=f"#/files/{key}")
        expect(page.locator("#left-out")).to_contain_text("1000 of 5000 extents, in equal gaps")
        script = "all => all.map((one) => Number(one.getAttribute('x2')))"
        ends = page.eval_on_selector_all("svg .extent", script)
        assert len(ends) == 4000
        assert max(ends) > 879, "the right end of the picture"
        expect(page.locator("#drift")).to_have_count(0)
        control.call(Simulate, action="drift", path=path)
        expect(page.locator("#drift")).to_contain_text("1 of 4000 extents")
        control.call(Return, seal=reply.seal.id)


SLOW = """
const now = window.fetch;
window.fetch = async (where, ...more) => {
  if (String(where).includes("/v1/holders")) await new Promise((done) => setTimeout(done, 4000));
  return now(where, ...more);
};
"""


def test_a_page_that_takes_longer_than_its_updates_is_seen(page: Page) -> None:
    """One is due every three seconds, and after each event."""
    page.add_init_script(SLOW)
    enter(page, where="#/holders")
    expect(page.get_by_role("heading", name="Holders")).to_be_visible()


def test_it_recovers_after_the_service_was_restarted(browser: Browser, tmp_path: Path) -> None:
    principals = write_principals(
        tmp_path / "p.toml", root={"role": "admin", "scopes": ["/"], "token": TOKEN}
    )
    with service(tmp_path, "--sim") as first, front(tmp_path, principals) as there:
        context = browser.new_context(base_url=there.base)
        page = context.new_page()
        enter(page)
        first.terminate()
        first.wait(PATIENCE)
        expect(page.get_by_role("alert").filter(has_text="does not answer")).to_be_visible()
        picture(page, "unavailable")
        with service(tmp_path, "--sim"):
            expect(page.locator("#banner")).to_be_hidden()
            page.goto("/dashboard/#/events")
            listed = page.get_by_role("list", name="Events")
            expect(listed.get_by_text("restarted").first).to_be_visible()
        context.close()


def test_on_a_phone_and_in_the_dark(browser: Browser, there: Front) -> None:
    context = browser.new_context(
        base_url=there.base, viewport={"width": 375, "height": 740}, color_scheme="dark"
    )
    page = context.new_page()
    enter(page, where="#/seals")
    expect(page.locator("tbody tr").first).to_be_visible()
    for where in PAGES:
        page.goto(f"/dashboard/{where}")
        page.wait_for_selector("h1")
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{where} is {wide} px wider than the screen"
    # Each row is a card: the names of the columns stand before the values.
    page.goto("/dashboard/#/seals")
    expect(page.locator("tbody tr").first).to_be_visible()
    expect(page.locator("thead").first).to_be_hidden()
    drawn = "cell => [getComputedStyle(cell, '::before').content, getComputedStyle(cell).display]"
    state = page.locator("tbody td[data-name=state]").first
    assert state.evaluate(drawn) == ['"state"', "grid"]
    picture(page, "phone-dark")
    context.close()


def test_everything_is_reached_by_keyboard(page: Page) -> None:
    enter(page)
    page.keyboard.press("Tab")
    page.goto("/dashboard/#/seals")
    expect(page.locator("h1")).to_be_focused()
    reached = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel"))
    assert {"search", "filter-state", "filter-kind", "Seals"} <= reached


def test_the_focus_outlives_an_update(page: Page, there: Front) -> None:
    """The page is drawn anew every three seconds, and whenever something happens."""
    path = "/sim/focus"
    with there.client() as control, there.http() as http:
        control.call(Simulate, action="create", path=path, size=MiB)
        body = {"path": path, "holder": {"pid": os.getpid()}, "kind": "shared"}
        made = [http.post("/v1/seals", json=body).json()["id"] for _ in range(2)]
        enter(page, where="#/seals")
        page.get_by_label("Search").fill("focus")
        expect(page.locator("tbody tr")).to_have_count(2)
        wanted = [
            page.locator("h1"),
            page.locator("tbody tr").nth(1).get_by_role("link").nth(2),  # a holder, of several rows
            page.get_by_role("button", name="Recall seal").first,
        ]
        for place in wanted:
            place.focus()
            page.evaluate("window.old = document.activeElement")
            wait_for(lambda: not page.evaluate("window.old.isConnected"))
            expect(place).to_be_focused()
        for seal in made:
            control.call(Return, seal=seal)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(browser: Browser, there: Front, axe: str, scheme: str) -> None:
    # Only the checker itself is let past the page's policy.
    context = browser.new_context(base_url=there.base, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.route("**/v1/coverage?*", lambda route: route.fulfill(json=COVERAGE))
    page.goto("/dashboard/")
    page.wait_for_selector("#token")
    found = [*violations(page, axe)]
    enter(page)
    with there.http() as http:
        file = http.get("/v1/files").json()["files"][0]["key"]
    for where in [*PAGES, f"#/files/{file}"]:
        page.goto(f"/dashboard/{where}")
        page.wait_for_selector("h1")
        page.wait_for_timeout(200)
        found += [f"{where}: {told}" for told in violations(page, axe)]
    context.close()
    assert not found, "\n".join(found)


def violations(page: Page, axe: str) -> list[str]:
    page.evaluate(axe)
    result = page.evaluate("axe.run()")
    return [
        f"{found['id']}: {json.dumps([node['html'][:160] for node in found['nodes'][:3]])}"
        for found in result["violations"]
    ]
