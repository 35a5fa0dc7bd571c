"""Derives from a kernel's source which functions can change an extent map.

    python -m tests.operations.derive VERSION TREE [VERSION TREE ...]

writes docs/operations/kernels/VERSION.txt for each unpacked source tree: the functions that call a
map-changing function of XFS or ext4 directly, the operations (members of operation tables, work
items, functions passed by address) from which one can be reached, the callers of the VFS's own
file-changing functions in the rest of the kernel, the ioctl commands that each file system handles,
the opcodes of io_uring, and those functions cited by the table that this version has.
docs/operations/sources.toml names where to look and what to follow.

C is not parsed but read as the kernel writes it: a function's body ends by a brace in the first
column. A call is a name within a body, so that the result may name a function too many, never
one too few, but for calls through function pointers. Those are the operations that are listed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.operations.table import OPERATIONS, load

_COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"->\w+|[A-Za-z_]\w*")
_CASE = re.compile(r"\bcase\s+([A-Z][A-Z0-9_]+)\s*:")
_OPCODE = re.compile(r"^\s*(IORING_OP_[A-Z0-9_]+)\s*[,=]", re.MULTILINE)
_SYSCALL = re.compile(r"(COMPAT_)?SYSCALL_DEFINE\d\((\w+)")
_MEMBER = re.compile(r"\.(\w+)\s*=\s*&?(\w+)")
_MACRO = re.compile(r"\b(INIT_(?:DELAYED_)?WORK|DEFINE_IOMAP_ITER_\w+)\(([^;]*?)\)")


@dataclass(frozen=True)
class Function:
    file: str
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"


@dataclass
class Unit:
    """One source file: the tokens of each function, and the text outside of all of them."""

    bodies: dict[str, str]
    outside: str


def read_unit(path: Path) -> Unit:
    text = path.read_text(errors="replace")
    lines = _COMMENT.sub(lambda m: "\n" * m.group().count("\n"), text).split("\n")
    bodies: dict[str, str] = {}
    outside: list[str] = []
    start = 0  # of what is not part of a function yet
    at = 0
    while at < len(lines):
        if not _opens_body(lines[at]):
            at += 1
            continue
        end = next((i for i in range(at, len(lines)) if lines[i].startswith("}")), len(lines) - 1)
        head = _head(lines, start, at)
        outside += lines[start:head]
        if name := _name("\n".join(lines[head : at + 1])):
            bodies[name] = "\n".join(lines[head : end + 1])
        else:
            outside += lines[head : end + 1]
        start = at = end + 1
    return Unit(bodies, "\n".join([*outside, *lines[start:]]))


def _opens_body(line: str) -> bool:
    """A brace in the first column, or, against the kernel's style, behind the parameters."""
    return line.rstrip() == "{" or (line.rstrip().endswith(") {") and not line.startswith("#"))


def _head(lines: list[str], start: int, brace: int) -> int:
    """The first line of the definition whose brace stands in line `brace`."""
    at = brace
    while at > start and not lines[at - 1].strip():
        at -= 1
    while at > start and lines[at - 1].strip() and not lines[at - 1].startswith(("#", "}")):
        if lines[at - 1].rstrip().endswith(";"):
            break
        at -= 1
    return at


def _name(head: str) -> str:
    if found := _SYSCALL.search(head):
        return f"{'compat_' if found[1] else ''}sys_{found[2]}"
    before, parenthesis, _ = head.partition("(")
    words = re.findall(r"\w+", before)
    return words[-1] if parenthesis and words and "=" not in before else ""


class Sources:
    """The functions below some folders or files of a kernel tree, and what each refers to."""

    def __init__(self, tree: Path, folders: Iterable[str], without: Iterable[str] = ()) -> None:
        skipped = tuple(without)
        self.tree = tree
        self.units: dict[str, Unit] = {}
        for path in _files(tree, folders):
            name = str(path.relative_to(tree))
            if not name.startswith(skipped) and not name.endswith("-test.c"):
                self.units[name] = read_unit(path)
        self._references: dict[str, set[Function]] = defaultdict(set)
        for function, body in self.functions():
            for token in set(_TOKEN.findall(body)) - {function.name}:
                self._references[token].add(function)

    def functions(self) -> Iterator[tuple[Function, str]]:
        for file, unit in self.units.items():
            for name, body in unit.bodies.items():
                yield Function(file, name), body

    def callers(self, name: str) -> set[Function]:
        return self._references.get(name, set())

    def reaching(self, sinks: Iterable[str], cuts: Iterable[str]) -> set[Function]:
        """Every function from which one of `sinks` can be reached, not by way of `cuts`."""
        found: set[Function] = set()
        cut = set(cuts)
        waiting = list(sinks)
        known = set(waiting)
        while waiting:
            for caller in self.callers(waiting.pop()):
                if caller.name in cut or caller in found:
                    continue
                found.add(caller)
                if caller.name not in known:
                    known.add(caller.name)
                    waiting.append(caller.name)
        return found

    def members(self) -> dict[str, set[str]]:
        """function -> the members of operation tables, and the macros, that name it."""
        found: dict[str, set[str]] = defaultdict(set)
        for unit in self.units.values():
            for member, value in _MEMBER.findall(unit.outside):
                found[value].add(f".{member}")
            for text in (unit.outside, *unit.bodies.values()):
                for macro, arguments in _MACRO.findall(text):
                    for word in _WORD.findall(arguments):
                        found[word].add(macro)
        return found


def _files(tree: Path, folders: Iterable[str]) -> Iterator[Path]:
    for folder in folders:
        path = tree / folder
        yield from sorted(path.rglob("*.c")) if path.is_dir() else [path] * path.exists()


def filesystem_lines(tree: Path, name: str, rules: dict[str, Any]) -> Iterator[str]:
    sources = Sources(tree, rules["folders"])
    sinks = set(rules["sinks"])
    cuts = set(rules["cuts"])
    reaching = sources.reaching(sinks, cuts)
    direct = {f for sink in sinks for f in sources.callers(sink) if f.name not in cuts}
    members = sources.members()
    for function in direct:
        if function.name not in sinks:
            yield f"{name} calls {function}"
    for function in reaching:
        for member in members.get(function.name, ()):
            yield f"{name} operation {function} {member}"
    for dispatcher in rules["ioctls"]:
        for unit in sources.units.values():
            for command in _CASE.findall(unit.bodies.get(dispatcher, "")):
                yield f"{name} ioctl {command}"


def vfs_lines(tree: Path, rules: dict[str, Any]) -> Iterator[str]:
    sources = Sources(tree, rules["folders"], rules["without"])
    for sink in rules["sinks"]:
        for function in sources.callers(sink):
            if function.name not in rules["sinks"]:
                yield f"vfs calls {function} {sink}"
    for dispatcher in rules["ioctls"]:
        for unit in sources.units.values():
            for command in _CASE.findall(unit.bodies.get(dispatcher, "")):
                yield f"vfs ioctl {command}"
    header = tree / "include" / "uapi" / "linux" / "io_uring.h"
    for opcode in _OPCODE.findall(header.read_text()):
        yield f"io_uring opcode {opcode}"


def cited_lines(tree: Path, cited: Iterable[Function]) -> Iterator[str]:
    units: dict[str, Unit] = {}
    for function in cited:
        path = tree / function.file
        if path.exists():
            unit = units.setdefault(function.file, read_unit(path))
            if function.name in unit.bodies:
                yield f"cited {function}"


def derive(tree: Path, rules: dict[str, Any], cited: Iterable[Function]) -> list[str]:
    lines = set(vfs_lines(tree, rules["vfs"])) | set(cited_lines(tree, cited))
    for name in ("xfs", "ext4"):
        lines |= set(filesystem_lines(tree, name, rules[name]))
    return sorted(lines)


def main(arguments: list[str]) -> None:
    if not arguments or len(arguments) % 2:
        sys.exit("usage: python -m tests.operations.derive VERSION TREE [VERSION TREE ...]")
    rules = tomllib.loads((OPERATIONS / "sources.toml").read_text())
    cited = {
        Function(citation.file, citation.function)
        for path in load().paths
        for citation in path.citations
    }
    for version, tree in zip(arguments[::2], arguments[1::2], strict=True):
        lines = derive(Path(tree), rules, cited)
        (OPERATIONS / "kernels" / f"{version}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
