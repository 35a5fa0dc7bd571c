"""Makes the pictures of docs/dashboard.md: `./dev screenshots`, or
`python -m tests.browser.screenshots [DIRECTORY]`.

The real service on a simulated system, the real API and a real Chromium. Each page of the menu is
shown on a desktop (light) and on a phone (dark), and one seal, one file and one holder besides.
What stands there: 2,000 seals of eight processes, an operation that waits, an alarm, and a file of
40,000 extents; it is looked for on the pages before they are kept. The rows of coverage are
measured on an XFS by `sealctl doctor`, a simulated kernel having nothing to measure; without root
there are none. Exports, Integrity and Copies are pictures of a real file system with its own
service; without root they are left as they are.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from sealsvc.client import Client
from sealsvc.exports.base import Spec
from sealsvc.exports.runtime import Record, Runtime
from sealsvc.protocol.seals import Grant, HolderSpec, RecallSeals, SealInfo
from sealsvc.protocol.system import Audit, Simulate
from tests.api import running
from tests.api.running import Front, simulated
from tests.browser.conftest import ARGUMENTS, ROOT, TOKEN, MiB, chromium, enter
from tests.browser.house import begin, exported, finished, housed, tagged
from tests.support.scratch import mounted
from tests.support.waiting import until

SEALS, EXTENTS = 2000, 40_000
EXTENT = 16 * MiB  # of the simulated system
VOLUMES = 40
CAPABILITIES = ("exports", "integrity", "copies")
BIG, WANTED, MOVED = "/sim/archive.img", "/sim/vm-07.img", "/sim/vm-11.img"
HOLDERS = (
    *("rdma-target", "nvmf-target", "smb-direct", "nfs-layouts"),
    *("hypervisor", "block-export", "log-writer", "backup"),
)
GRACE = 900.0  # seconds: longer than the pictures take
PATIENCE = 120_000.0  # ms: a page of 2,000 seals, on a machine that has other things to do
QUALITIES = (40, 30, 20)  # of WebP: the first by which a picture is small
LARGEST = 58_000  # bytes


@dataclass(frozen=True)
class View:
    name: str
    width: int
    height: int
    scheme: str


VIEWS = (View("desktop", 1280, 860, "light"), View("phone", 390, 844, "dark"))


@contextmanager
def holders(directory: Path) -> Iterator[list[int]]:
    """Processes that are called as programs which would hold seals."""
    made = []
    try:
        for name in HOLDERS:
            program = directory / name
            program.symlink_to(shutil.which("sleep") or "/bin/sleep")
            made.append(subprocess.Popen([program, "3600"]))
        yield [process.pid for process in made]
    finally:
        for process in made:
            process.kill()
            process.wait()


def seal_everything(control: Client, pids: Sequence[int]) -> None:
    """One seal on the file of many extents; the others are parts of volumes."""

    def grant(path: str, number: int, **more: Any) -> None:
        holder = HolderSpec(pid=pids[number % len(pids)])
        reply = control.call(Grant, path=path, kind="shared", holder=holder, grace=GRACE, **more)
        assert isinstance(reply.result, SealInfo)

    control.call(Simulate, action="create", path=BIG, size=EXTENTS * EXTENT)
    grant(BIG, 0, tag="archive")
    parts = -(-(SEALS - 1) // VOLUMES)
    for volume in range(VOLUMES):
        path = f"/sim/vm-{volume:02}.img"
        control.call(Simulate, action="create", path=path, size=parts * EXTENT)
        for part in range(min(parts, SEALS - 1 - volume * parts)):
            tag = f"vm-{volume:02}/part-{part}"
            grant(path, volume, offset=part * EXTENT, length=EXTENT, tag=tag)


@contextmanager
def in_its_way(there: Front) -> Iterator[None]:
    """An operation that waits for a seal while the context lasts; it ends with its connection."""
    control = there.client()

    def intrude() -> None:
        with suppress(Exception):  # the connection is closed under it
            control.call(
                Simulate,
                action="conflict",
                path=WANTED,
                offset=2 * EXTENT,
                length=4096,
                pid=os.getpid(),
                timeout=GRACE,
            )

    thread = threading.Thread(target=intrude, daemon=True)
    thread.start()
    try:
        with there.http() as http:
            until(lambda: http.get("/v1/conflicts").json()["total"] == 1)
        yield
    finally:
        control.close()


@contextmanager
def scene(directory: Path) -> Iterator[tuple[Front, list[int]]]:
    config = directory / "sealsvc.toml"
    kept = f'[registry]\ndirectory = "{directory}/registry"\n'
    config.write_text(f"{kept}[policy]\nmax_grace = {GRACE}\nmax_recall = {GRACE}\n")
    with ExitStack() as stack:
        pids = stack.enter_context(holders(directory))
        there = stack.enter_context(simulated(directory, "--config", str(config)))
        with there.client() as control:
            seal_everything(control, pids)
            control.call(Simulate, action="drift", path=MOVED)
            control.call(Audit)
        stack.enter_context(in_its_way(there))
        yield there, pids


def measured() -> dict[str, Any] | None:
    """The coverage of an XFS of this machine, as GET /v1/coverage has it; None without root."""
    if os.geteuid() != 0:
        return None
    with mounted("xfs", mkfs_args=["-m", "reflink=1"]) as point:
        command = [sys.executable, "-m", "sealsvc.cli.sealctl", "doctor", str(point), "-o", "json"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    report = json.loads(done.stdout)
    return {
        "type": "coverage",
        "mount": "/sim",
        "measured_at": time.time(),
        "rows": report["coverage"],
    }


@contextmanager
def capabilities(directory: Path) -> Iterator[tuple[Front, list[tuple[str, str]]]]:
    """A house with an export that paused once and one whose process has died, a corrupt block, a
    copy under way, a finished one and a relocation; and the pages that show them."""
    with housed(directory) as house, exported(house, "disk", "disk.img") as info:
        if program := shutil.which("nbdcopy"):
            subprocess.run([program, info["device"], "null:"], check=True, timeout=120)
        with house.client() as client:
            client.call(RecallSeals, path=info["file"])
        until(lambda: bool(house.exports.show("disk")["pauses"]["count"]))
        ended = subprocess.Popen(["true"])
        ended.wait()
        spec = Spec(name="backup", type="nbd", file=f"{house.point}/backup.img")
        runtime = Runtime(str(house.exports.directory))
        runtime.write(Record(spec=spec, pid=ended.pid, start_time=1))
        source, copy = house.file("vm-07.img", 64 * MiB), house.point / "vm-07.copy"
        copy.touch()
        both = {"source": str(source), "destination": str(copy)}
        done = begin(house, "copies", **both, strategies=["direct"], whole=True, verify=True)
        finished(house, done)
        finished(house, begin(house, "relocations", path=str(source), goal={"align": 2 * MiB}))
        slow = {"throttle": MiB // 16, "strategies": ["plain"], "seals": False}
        begin(house, "copies", **{**both, "destination": str(house.file("vm-08.copy"))}, **slow)
        with tagged(house, "journal.db") as attachment, house.client() as client:
            client.pi_verify(attachment=attachment)
            yield (
                house.there,
                [
                    *((name, f"#/{name}") for name in CAPABILITIES),
                    ("export", "#/exports/disk"),
                    ("attachment", f"#/integrity/{attachment}"),
                    ("copy", f"#/copies/{done}"),
                ],
            )
        runtime.remove("backup")


def details(there: Front, pids: Sequence[int]) -> Iterator[tuple[str, str]]:
    """The pages of one thing each, by the name of their picture."""
    with there.http() as http:
        [recalled] = (x for x in http.get("/v1/recalls").json()["seals"] if x["path"] == WANTED)
        [big] = (f for f in http.get("/v1/files").json()["files"] if f["path"] == BIG)
    yield "seal", f"#/seals/{recalled['id']}"
    yield "file", f"#/files/{big['key']}"
    yield "holder", f"#/holders/{pids[7]}"


def shows_the_scene(page: Page) -> None:
    """2,000 seals, the conflict, the alarm: they are what the pictures are about."""
    page.goto("/dashboard/#/")
    expect(page.locator("#cards")).to_contain_text(str(SEALS))
    waiting = page.get_by_role("region", name="Operations that wait")
    expect(waiting.get_by_text(WANTED)).to_be_visible()
    expect(page.get_by_role("region", name="Alarms").get_by_text(MOVED).first).to_be_attached()
    page.goto("/dashboard/#/seals")
    expect(page.locator("#count")).to_have_text(f"{SEALS} seals")


def is_drawn(page: Page) -> None:
    """The heading of the page, and what it draws; the extent map comes last."""
    page.wait_for_selector("#main h1")
    if "#/files/" in page.url:
        page.wait_for_selector("svg.picture .extent", state="attached")
        expect(page.locator("#left-out")).to_contain_text(f"of {EXTENTS} extents")
    if page.url.endswith("#/events"):
        listed = page.get_by_role("list", name="Events")
        expect(listed.get_by_text("conflict").first).to_be_visible()
    page.wait_for_timeout(400)


def keep(context: BrowserContext, page: Page, file: Path) -> None:
    """WebP, which Playwright itself does not write: a fifth of PNG."""
    page.evaluate("document.activeElement?.blur()")
    session = context.new_cdp_session(page)
    for quality in QUALITIES:
        made = session.send("Page.captureScreenshot", {"format": "webp", "quality": quality})
        file.write_bytes(base64.b64decode(made["data"]))
        if file.stat().st_size <= LARGEST:
            break
    session.detach()


@contextmanager
def opened(browser: Browser, view: View, there: Front) -> Iterator[tuple[BrowserContext, Page]]:
    context = browser.new_context(
        base_url=there.base,
        viewport={"width": view.width, "height": view.height},
        color_scheme=view.scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.goto("/dashboard/")
    page.wait_for_selector("#token")
    yield context, page
    context.close()


def keep_each(
    context: BrowserContext,
    page: Page,
    view: View,
    places: Iterable[tuple[str, str]],
    directory: Path,
) -> None:
    for name, where in places:
        page.goto(f"/dashboard/{where}")
        page.reload()  # whatever it was asked for before is drawn anew, from the top
        page.wait_for_selector("#link.live")
        is_drawn(page)
        keep(context, page, directory / f"{name}-{view.name}.webp")


def picture_all(
    browser: Browser,
    view: View,
    there: Front,
    pids: Sequence[int],
    coverage: dict[str, Any] | None,
    directory: Path,
) -> None:
    with opened(browser, view, there) as (context, page):
        if coverage:
            page.route("**/v1/coverage?*", lambda route: route.fulfill(json=coverage))
        keep(context, page, directory / f"login-{view.name}.webp")
        enter(page, TOKEN)
        shows_the_scene(page)
        menu = page.eval_on_selector_all("#nav a", "all => all.map(a => a.hash)")
        pages = [(where.removeprefix("#/") or "overview", where) for where in menu]
        shown = [place for place in pages if place[0] not in CAPABILITIES]
        keep_each(context, page, view, [*shown, *details(there, pids)], directory)


def picture_capabilities(browser: Browser, made: Path, directory: Path) -> None:
    with capabilities(made) as (there, places):
        for view in VIEWS:
            with opened(browser, view, there) as (context, page):
                enter(page, TOKEN)
                keep_each(context, page, view, places, directory)


def make(directory: Path) -> None:
    running.PATIENCE = PATIENCE / 1000
    coverage = measured()
    directory.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="sealsvc-shown-") as made,
        scene(Path(made)) as (there, pids),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        for view in VIEWS:
            picture_all(browser, view, there, pids, coverage, directory)
        if os.geteuid() == 0:
            picture_capabilities(browser, Path(made) / "house", directory)
        browser.close()
    for file in sorted(directory.glob("*.webp")):
        print(f"{file.stat().st_size:7} {file}")


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots")
