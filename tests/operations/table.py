"""The table of every path that can change an extent map or what its blocks mean: docs/operations/.

Each [[path]] of system.toml, servers.toml, xfs.toml and ext4.toml is one way from an entry point to
the functions of the kernel that change the map; aside.toml sets aside what the derivation
(tests/operations/derive.py) finds and is none. KEYS says what each key means.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations"
FILES = ("system", "servers", "xfs", "ext4")

KEYS = {
    "id": "names the path",
    "entry": "how one gets there: system calls, ioctls, servers, the kernel's own work",
    "filesystems": "xfs, ext4 or both (the default)",
    "kernels": "the versions that have it, of those supported; the default is all",
    "code": "the kernel's functions, FILE:FUNCTION, behind the versions where not all have it",
    "ioctls": "the commands it stands for",
    "opcodes": "the io_uring opcodes it stands for",
    "changes": "what it changes",
    "fanotify": "what fanotify sees of it: range (FAN_PRE_ACCESS), open (FAN_OPEN_PERM) or none",
    "bpf": "the hooks that see it",
    "others": "lease: who opens waits for a lease that is held; pin: waits for a page in use (DAX)",
    "privilege": "what it needs beyond permission to write the file",
    "judged": "what the service does of it, see JUDGEMENTS",
    "why": "the reason, where it is not in `judged`",
    "shown": "the doctor's rows, the tests, or `none:` and why there is none",
}
JUDGEMENTS = {
    "class": "an operation of the rule book (docs/rules.md), whose rule says whether it passes",
    "harmless": "it changes nothing of a sealed range",
    "risk": "a named risk, which policy must accept where no enforcer sees it",
    "grant": "a file in that state is refused, with this error",
    "below": "not promised",
    "open": "not judged as it must be yet",
}
SHOWN = ("doctor", "test", "none")

Version = tuple[int, int]


@dataclass(frozen=True)
class Range:
    """Kernel versions, both ends included; None is open."""

    first: Version | None
    last: Version | None

    @classmethod
    def parse(cls, text: str) -> Range:
        first, dash, last = text.partition("-")
        return cls(_version(first), _version(last if dash else first))

    def __contains__(self, version: Version) -> bool:
        return (self.first or version) <= version <= (self.last or version)


def _version(text: str) -> Version | None:
    if not text:
        return None
    major, minor = text.split(".")
    return int(major), int(minor)


@dataclass(frozen=True)
class Citation:
    kernels: Range
    file: str
    function: str


@dataclass(frozen=True)
class Entry:
    """One [[path]]; `rows` is as it stands in the file."""

    file: str
    rows: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name in KEYS:
            return self.rows.get(name, "")
        raise AttributeError(name)

    @property
    def kernel_range(self) -> Range:
        return Range.parse(self.rows.get("kernels", "-"))

    @property
    def judgement(self) -> tuple[str, str]:
        kind, _, name = self.rows["judged"].partition(":")
        return kind, name

    @property
    def citations(self) -> Iterator[Citation]:
        for text in self.rows["code"]:
            versions, _, place = text.rpartition(" ")
            file, _, function = place.partition(":")
            yield Citation(Range.parse(versions) if versions else self.kernel_range, file, function)

    def shown_by(self, kind: str) -> list[str]:
        return [
            text.partition(":")[2] for text in self.rows["shown"] if text.startswith(f"{kind}:")
        ]


@dataclass(frozen=True)
class Table:
    paths: tuple[Entry, ...]
    aside: tuple[dict[str, Any], ...]

    def doctor_rows(self, *judgements: str) -> set[str]:
        """The doctor's rows of paths that are judged so, without the routes to the file."""
        return {
            row
            for path in self.paths
            if path.judgement[0] in judgements
            for row in path.shown_by("doctor")
        }


def load() -> Table:
    paths = [
        Entry(name, rows)
        for name in FILES
        for rows in tomllib.loads((OPERATIONS / f"{name}.toml").read_text())["path"]
    ]
    aside = tomllib.loads((OPERATIONS / "aside.toml").read_text())["aside"]
    return Table(tuple(paths), tuple(aside))


def kernels() -> dict[Version, list[str]]:
    """What was derived from each version's sources."""
    found = {}
    for path in (OPERATIONS / "kernels").glob("*.txt"):
        major, minor = path.stem.split(".")
        found[int(major), int(minor)] = path.read_text().splitlines()
    return dict(sorted(found.items()))
