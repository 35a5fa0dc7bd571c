"""Who imports whom: the contracts of pyproject.toml, and what they cannot say."""

from __future__ import annotations

import ast
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (ROOT / "sealsvc", ROOT / "api" / "sealsvc_api")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


def test_the_contracts_are_kept() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/api"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert ", 0 broken." in done.stdout


def test_one_module_imports_the_binding() -> None:
    users = [
        str(path.relative_to(ROOT))
        for source in SOURCES
        for path in source.rglob("*.py")
        if "_sealsvc_native" in {name.split(".")[0] for name in imports(path)}
    ]
    assert users == ["sealsvc/linux/native.py"]


def test_only_the_composition_root_builds_enforcers() -> None:
    for path in (ROOT / "sealsvc").rglob("*.py"):
        if path.name == "systems.py" or path.parent.name == "enforce":
            continue
        source = path.read_text()
        assert "FanotifyEnforcer(" not in source, path
        assert "LeaseEnforcer(" not in source, path


def test_one_idea_in_a_file_and_few_lines() -> None:
    """The limits of CONTRIBUTING.md; methods.py is generated."""
    lines = {
        str(path.relative_to(ROOT)): path.read_text().count("\n")
        for source in SOURCES
        for path in source.rglob("*.py")
        if path.name != "methods.py"
    }
    assert [name for name, count in lines.items() if count > 500] == []
    assert statistics.median(lines.values()) < 200
