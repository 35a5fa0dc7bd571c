"""The table of faults in docs/copies.md, from what its tests found.

`python -m tests.lab.fault_table` runs them (half an hour), writes docs/copies/faults.json, and the
page from it. With files that `pytest -o junit_family=xunit1 --junitxml=FILE` wrote, the rows of
those runs replace those that were there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
PAGE, DATA = ROOT / "docs/copies.md", ROOT / "docs/copies/faults.json"
TESTS = ("tests/lab/test_copy_faults.py", "tests/lab/test_copy_replay.py")
BEGIN, END = "<!-- faults: python -m tests.lab.fault_table -->\n", "<!-- end of faults -->\n"

Row = dict[str, Any]


def rows_of(report: Path) -> list[Row]:
    """Those of the tests that passed."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is None and case.find("error") is None:
            found += [
                ast.literal_eval(entry.attrib["value"])
                for entry in case.iter("property")
                if entry.attrib["name"] == "fault"
            ]
    return found


def key(row: Row) -> tuple[str, str, str]:
    return row["what"], row["fault"], row["filesystem"]


def lines(rows: list[Row]) -> list[str]:
    out = [
        "| in the middle of | fault | file system | reported | found on the device |\n",
        "| --- | --- | --- | --- | --- |\n",
    ]
    for row in sorted(rows, key=key):
        cells = (row["what"], row["fault"], row["filesystem"], row["reported"], row["found"])
        out.append(f"| {' | '.join(cells)} |\n")
    return out


def page(text: str, rows: list[Row]) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "".join(lines(rows)) + END + after


def main() -> int:
    status = 0
    with tempfile.TemporaryDirectory() as directory:
        reports = [Path(name) for name in sys.argv[1:]]
        if not reports:
            reports = [Path(directory, "report.xml")]
            command = [sys.executable, "-m", "pytest", "-q", "--long", "--lab-minutes=0"]
            # Properties of tests are no part of the newer format.
            run = [*command, "-o", "junit_family=xunit1", f"--junitxml={reports[0]}", *TESTS]
            status = subprocess.run(run, cwd=ROOT, check=False).returncode
        known = {key(row): row for row in (json.loads(DATA.read_text()) if DATA.exists() else [])}
        for report in reports:
            known |= {key(row): row for row in rows_of(report)}
    rows = sorted(known.values(), key=key)
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(rows, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), rows))
    print(f"{len(rows)} rows in {DATA.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
