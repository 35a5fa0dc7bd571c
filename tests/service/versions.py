"""Other versions of sealsvc, to be run over the same keeper: this tree with what a later one might
have changed."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.service import ROOT

VERSION = "99.0.1"

# A term of a seal, a member of two records of the journal and of a nested one: each as the rules of
# docs/upgrade.md have it, at the end and with a default.
_ADDED = {
    "protocol/seals.py": ("    only: Conditions = Conditions()\n", "    later: str = ''\n"),
    "core/model.py": ("    watched: bool = False\n    cookie: int = 0\n", "    later: int = 0\n"),
    "lifecycle/journal.py": ("    description: Mark = Mark()\n", "    later: int = 7\n"),
}


def later(directory: Path) -> Path:
    """A tree of a later version that keeps to the rules of docs/upgrade.md."""
    make_later(_copy(directory) / "sealsvc")
    return directory


def make_later(package: Path) -> None:
    """Change the modules of `package`, a copy of sealsvc/, to those of such a version."""
    for name, (after, line) in _ADDED.items():
        _replace(package / name, after, after + line)
    _replace(
        package / "lifecycle" / "journal.py",
        "    drifted: bool = False\n",
        "    drifted: bool = False\n    later: str = 'later'\n",
    )


def of_another_journal(directory: Path) -> Path:
    made = _copy(directory)
    _replace(made / "sealsvc" / "lifecycle" / "journal.py", 'b"SEALJRN2"', 'b"SEALJRN3"')
    return made


def of_another_keeper(directory: Path) -> Path:
    """A service that speaks version 99 with its keeper."""
    made = _copy(directory)
    path = made / "sealsvc" / "enforce" / "keeper_messages.py"
    _replace(path, "lib.KEEPER_VERSION", "99")
    return made


def _copy(directory: Path) -> Path:
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "sealsvc", directory / "sealsvc", ignore=left_out)
    name_version(directory / "sealsvc")
    return directory


def name_version(package: Path) -> None:
    now = "__version__ = "
    _replace(package / "__init__.py", now, f'{now}"{VERSION}"  # ')


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new))
