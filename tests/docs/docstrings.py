"""The docstrings of the public surface: what each must say, and which do not.

The surface is the Python client, the ring's included (sealsvc/client), the messages of the control
protocol (sealsvc/protocol), and the routes of the REST API. `python -m tests.docs.docstrings`
counts, and names what is missing.

* Every public module, class, function and method has a docstring; a route has its summary.
* One that raises says which error, or is part of a class or module that does.
* One that takes, has or returns a time, a size, an offset or a rate names its unit; so may its
  class or its module, for all in it.
* One that stands on the kernel or a standard cites a version, a manual page, a file or a section.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SURFACE = ("sealsvc/client", "sealsvc/protocol")
ROUTES = "api/sealsvc_api"

_UNIT = re.compile(
    r"\b([Ss]econds?|s|ms|ns|bytes?|percent|ticks|pages?|blocks?|per second|epoch|CLOCK_\w+)\b"
)
_QUANTITY = re.compile(
    r"(^|_)(time|timeout|patience|grace|ttl|deadline|expires|interval|age|offset|length|size|bytes"
    r"|rate|waited|width|granularity)(_|$)"
)
_FACT = re.compile(r"\b(kernel|Linux|XFS|ext4|RFC|NVMe|T10|SCSI|POSIX|VFS)\b")
_SOURCE = re.compile(
    r"v?\d+\.\d+|\w\(\d\)|\w/\w|\w\.(py|[ch])\b|RFC \d+|section|docs/|T10 |SBC|clause|PROTECT"
)
_ERROR = re.compile(r"[A-Z]\w*(Error|Refusal|Gone|Closed|Exit)|Refusal")
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Place:
    """A definition and the docstrings that speak for it, its own first."""

    file: str
    line: int
    name: str
    docs: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.name}"


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _raised(function: Definition) -> set[str]:
    """Names of the exceptions that the body creates and raises; nested functions are left out."""
    found: set[str] = set()
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            called = node.exc.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if _ERROR.fullmatch(name) and not name.startswith("_"):
                found.add(name)
        todo.extend(ast.iter_child_nodes(node))
    return found


def _has_unit(name: str, annotation: ast.expr | None) -> bool:
    """Whether a value is a quantity: every float is one, and an int by its name."""
    names = {n.id for n in ast.walk(annotation) if isinstance(n, ast.Name)} if annotation else set()
    return "float" in names or ("int" in names and bool(_QUANTITY.search(name)))


def _quantities(node: Definition | ast.ClassDef) -> list[str]:
    """Names of the numbers with a unit: parameters, or fields; and `return` of a float."""
    if isinstance(node, ast.ClassDef):
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
        named = [(f.target.id, f.annotation) for f in fields if isinstance(f.target, ast.Name)]
        return [name for name, kind in named if _has_unit(name, kind)]
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    found = [a.arg for a in arguments if _has_unit(a.arg, a.annotation)]
    return [*found, *(["its result"] if _has_unit("", node.returns) else [])]


def _faults(place: Place, node: ast.AST) -> Iterator[str]:
    own = place.docs[0]
    if not own:
        yield f"{place} has no docstring"
        return
    said = " ".join(place.docs)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        missing = sorted(name for name in _raised(node) if name not in said)
        if missing:
            yield f"{place} does not say that it raises {', '.join(missing)}"
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        quantities = _quantities(node)
        if quantities and not _UNIT.search(said):
            yield f"{place} names no unit of {', '.join(quantities)}"
    if _FACT.search(own) and not _SOURCE.search(said):
        yield f"{place} cites no source of {_FACT.search(own)[0]!r}"  # type: ignore[index]


def _definitions(path: Path) -> Iterator[tuple[Place, ast.AST]]:
    file = str(path.relative_to(ROOT))
    module = ast.parse(path.read_text())
    about = ast.get_docstring(module) or ""
    yield Place(file, 1, "the module", (about,)), module

    def inside(
        body: list[ast.stmt], prefix: str, outer: tuple[str, ...]
    ) -> Iterator[tuple[Place, ast.AST]]:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            if not _is_public(node.name) or _is_overload(node):
                continue
            docs = (ast.get_docstring(node) or "", *outer)
            yield Place(file, node.lineno, prefix + node.name, docs), node
            if isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{prefix}{node.name}.", docs)

    yield from inside(module.body, "", (about,))


def _is_overload(node: ast.AST) -> bool:
    names = [getattr(d, "id", getattr(d, "attr", "")) for d in getattr(node, "decorator_list", [])]
    return "overload" in names or "setter" in names


def _routes(path: Path) -> Iterator[tuple[Place, bool]]:
    """The routes of a file, and whether each has a summary."""
    for node in ast.walk(ast.parse(path.read_text())):
        for decorator in getattr(node, "decorator_list", []):
            if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
                continue
            if decorator.func.attr in ("get", "post", "put", "patch", "delete"):
                place = Place(str(path.relative_to(ROOT)), node.lineno, node.name, ())  # type: ignore[attr-defined]
                hidden = any(
                    k.arg == "include_in_schema" and getattr(k.value, "value", True) is False
                    for k in decorator.keywords
                )
                said = any(k.arg == "summary" for k in decorator.keywords)
                yield place, said or hidden


def measured() -> tuple[int, list[str]]:
    """How many definitions and routes the surface has, and what is wrong with them, as text."""
    count, faults = 0, []
    for folder in SURFACE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for place, node in _definitions(path):
                count += 1
                faults += _faults(place, node)
    for path in sorted((ROOT / ROUTES).rglob("*.py")):
        for place, said in _routes(path):
            count += 1
            if not said:
                faults.append(f"{place} is a route without a summary")
    return count, faults


if __name__ == "__main__":
    number, wrong = measured()
    print(*wrong, f"{number} definitions, {len(wrong)} faults", sep="\n")
    sys.exit(bool(wrong))
