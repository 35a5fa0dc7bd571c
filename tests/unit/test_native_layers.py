"""Which C file uses which: no file uses one that uses it in turn, and no folder one above it.

A file uses another when it names a function or a variable that the other defines, or includes its
header. The sources are read as text (clang-format keeps a definition at the beginning of
its line), so that nothing needs to be built."""

from __future__ import annotations

import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

NATIVE = Path(__file__).parents[2] / "native"

# A folder, and those it may use besides itself and the headers of include/.
MAY_USE: dict[str, set[str]] = {
    "abi": set(),
    "base": set(),
    "kernel": {"base"},
    "copy": {"base"},
    "libseal": {"abi"},
    "ring": {"kernel", "base", "abi"},
    "gate": {"kernel", "base"},
    "keeper": {"gate", "ring", "kernel", "base"},
    "integrity": set(),
    "integrity/device": {"integrity", "libseal"},
    "exports/core": {"libseal"},
    "exports/nbd": {"exports/core", "libseal"},
    "exports/ublk": {"exports/core", "libseal"},
    "exports/ublk/examples": {"exports/ublk"},
    "exports/tcmu": {"exports/core", "copy", "libseal", "abi"},
    "exports/tcmu/tests": {"exports/tcmu", "tests"},
    "exports/tcmu/fuzz": {"exports/tcmu"},
    "fuzz": {"abi", "ring", "libseal"},
    "tests": {"base", "kernel", "ring", "gate", "exports/core", "libseal", "abi"},
}
# Programs of BPF are compiled for the kernel and linked with nothing.
SEPARATE = {"bpf"}

NO_CODE = re.compile(r"""/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)
FUNCTION = re.compile(
    r"^(?!static\b|typedef\b)[a-z_][\w *\n]*?\b([a-z_]\w*)\((?:[^;{}()]|\([^()]*\))*\)\s*\n\{",
    re.MULTILINE,
)
VARIABLE = re.compile(
    r"^(?!static\b|typedef\b|extern\b)[a-z_][\w *]*?\b([a-z_]\w*)(?:\[[^\]]*\])? =", re.MULTILINE
)
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)


def folder(path: Path) -> str:
    return path.parent.relative_to(NATIVE).as_posix()


def sources(pattern: str) -> Iterator[Path]:
    for path in sorted(NATIVE.rglob(pattern)):
        # What stands in for a file that this build leaves out defines the same names.
        if folder(path) not in SEPARATE and not path.stem.endswith("_absent"):
            yield path


def definitions(texts: dict[Path, str]) -> dict[str, set[Path]]:
    found: dict[str, set[Path]] = {}
    for path, text in texts.items():
        for name in FUNCTION.findall(text) + VARIABLE.findall(text):
            if name != "main":
                found.setdefault(name, set()).add(path)
    return found


def uses_by_name() -> dict[Path, set[Path]]:
    texts = {path: NO_CODE.sub(" ", path.read_text()) for path in sources("*.c")}
    defined = definitions(texts)
    return {
        path: {
            other
            for name in set(re.findall(r"\b[a-z_]\w*\b", text))
            for other in defined.get(name, ())
            if path not in defined[name]
        }
        for path, text in texts.items()
    }


def uses_by_include(pattern: str) -> dict[Path, set[Path]]:
    found = {}
    for path in sources(pattern):
        names = INCLUDE.findall(path.read_text())
        there = (base / name for name in names for base in (path.parent, NATIVE))
        found[path] = {other.resolve() for other in there if other.exists()}
    return found


def shown(paths: list[Path]) -> str:
    return " -> ".join(str(path.relative_to(NATIVE)) for path in paths)


def test_no_circle() -> None:
    for uses in (uses_by_name(), uses_by_include("*.h")):
        try:
            TopologicalSorter(uses).prepare()
        except CycleError as error:
            raise AssertionError(shown(error.args[1])) from None


def test_no_folder_uses_one_above_it() -> None:
    for uses in (uses_by_name(), uses_by_include("*.[ch]")):
        for path, others in uses.items():
            for other in others:
                here, there = folder(path), folder(other)
                if there in {here, *SEPARATE} or there.startswith("include"):
                    continue
                assert there in MAY_USE[here], f"{shown([path, other])}: see MAY_USE"


def test_every_folder_has_its_place() -> None:
    """What may be used is no circle either, and nothing in the table is out of date."""
    TopologicalSorter(MAY_USE).prepare()
    folders = {folder(path) for path in sources("*.[ch]") if not folder(path).startswith("include")}
    assert folders == set(MAY_USE)


def test_what_is_read_is_what_is_there() -> None:
    """The patterns above see definitions of every form that occurs."""
    uses = uses_by_name()
    seen = {
        (path.relative_to(NATIVE).as_posix(), other.relative_to(NATIVE).as_posix())
        for path, others in uses.items()
        for other in others
    }
    assert {
        ("gate/judge.c", "kernel/verdict.c"),  # one line
        ("keeper/rings.c", "ring/registrations.c"),  # parameters on several lines
        ("gate/gate.c", "gate/reader.c"),  # returns a pointer, and is never called by name
        ("exports/core/target.c", "libseal/client.c"),
    } <= seen
    assert len(seen) > 200
