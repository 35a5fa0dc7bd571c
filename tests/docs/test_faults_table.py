"""The table of faults in docs/copies.md is what its tests found. After a run of these:
`python -m tests.lab.fault_table`."""

from __future__ import annotations

import json
import re

from tests.lab.fault_table import DATA, PAGE, ROOT, TESTS, page

COPIES = ("clone", "range", "direct", "plain", "lower", "nvme", "xcopy", "dax")
LOGGED = ("clone", "plain")


def test_the_page_has_the_rows_that_the_tests_found() -> None:
    text = PAGE.read_text()
    assert page(text, json.loads(DATA.read_text())) == text


def test_every_strategy_has_met_every_fault() -> None:
    found = {(row["what"], row["fault"]) for row in json.loads(DATA.read_text())}
    faults = {"the device is gone", "kill -9 of the copy"}
    wanted = {(f"copy by {strategy}", fault) for strategy in COPIES for fault in faults}
    for fault in ("writes fail", "reads fail"):  # dm-flakey is not for DAX
        wanted |= {(f"copy by {strategy}", fault) for strategy in COPIES if strategy != "dax"}
    wanted |= {(f"copy by {one}", "the power is cut after any write") for one in LOGGED}
    assert wanted - found == set()


def test_the_tests_name_the_faults_of_the_table() -> None:
    sources = "".join((ROOT / test).read_text() for test in TESTS)
    for row in json.loads(DATA.read_text()):
        assert re.search(re.escape(row["fault"]), sources), row
