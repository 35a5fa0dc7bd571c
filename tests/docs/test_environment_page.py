"""docs/environment.md names the tests that show what it says: they exist, and none is forgotten."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "environment.md"
SUITES = [ROOT / "tests" / kind / "test_environment.py" for kind in ("service", "lab")]


def _rows() -> list[list[str]]:
    first_part = PAGE.read_text().partition("\n## ")[0]
    lines = [line for line in first_part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def _tests() -> list[str]:
    found = [node for path in SUITES for node in ast.parse(path.read_text()).body]
    return [
        node.name
        for node in found
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_each_row_is_shown_by_tests_and_each_test_by_a_row() -> None:
    named = [re.findall(r"`(test_\w+)`", row[-1]) for row in _rows()]
    assert len(named) > 10
    assert all(named)
    assert sorted(name for names in named for name in names) == sorted(_tests())


def test_the_files_that_it_names_exist() -> None:
    files = re.findall(r"`(tests/[\w/]+\.py)`", PAGE.read_text())
    assert len(files) == 3
    assert all((ROOT / name).is_file() for name in files)
