"""Writes docs/coverage.md: `python -m tests.operations.coverage_page`.

The words are from docs/coverage/SERIES.json, what each row means from docs/coverage/rows.toml, and
the rule it falls under from the table of operations.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator

from sealsvc.core import rules
from tests.operations.coverage import (
    COVERAGE,
    FILESYSTEMS,
    SERIES,
    SETUPS,
    WORDS,
    Measured,
    Setup,
    Snapshot,
    kernels,
    rows_of,
)
from tests.operations.table import ROOT, Entry, load

PAGE = ROOT / "docs" / "coverage.md"

_HEAD = """\
# Coverage

What `sealctl doctor` found on Debian's kernels, on XFS with reflink and on ext4, with each set-up
of enforcers that the service would choose there. `python -m tests.lab.coverage` boots each kernel
in the lab ([lab.md](lab.md)), writes docs/coverage/SERIES.json, and generates this page; do not
edit. Other kernels stand by their releases; `--here` measures one without the lab. Measure your own
kernel and file system by `sealctl doctor PATH`.

Each row is one operation of a second process on a file that is sealed by the set-up:

| set-up | seal | file system |
| --- | --- | --- |
{setups}

| word | means |
| --- | --- |
{words}

## What was measured

{measured}
"""
_RULE = """\
A word without a series is true of every kernel that was measured with the set-up. *rule*: the
operation of the rule book ([rules.md](rules.md)), or how the operation is judged otherwise
([operations.md](operations.md)).
"""


def meanings() -> tuple[dict[str, str], dict[str, str]]:
    """Of rows, and of the routes behind a slash."""
    told = tomllib.loads((COVERAGE / "rows.toml").read_text())
    return told["rows"], told["routes"]


def paths_of(row: str, paths: Iterable[Entry]) -> list[Entry]:
    """The paths of the table of operations that a row shows."""
    plain = row.partition("/")[0]
    found = [path for path in paths if row in path.shown_by("doctor")]
    return found or [path for path in paths if plain in path.shown_by("doctor")]


def rule_of(path: Entry) -> str:
    kind, name = path.judgement
    return name if kind == "class" else kind if kind == "harmless" else f"{kind}: {name}"


def may_conflict(path: Entry, filesystem: str) -> bool:
    """By the rule book: may it conflict with a shared seal, whatever the range?"""
    kind, name = path.judgement
    if kind != "class":
        return kind != "harmless"
    traits = rules.Trait.ATOMIC
    if filesystem == "xfs":
        traits |= rules.Trait.REFLINK
    return rules.reach(rules.of(name), traits) is not rules.Reach.NONE


def text() -> str:
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    found = kernels()
    yield _HEAD.format(
        setups="\n".join(_setup(setup) for setup in SETUPS.values()),
        words="\n".join(f"| `{word}` | {means} |" for word, means in WORDS.items()),
        measured="\n".join(_measured(found)),
    )
    for filesystem in FILESYSTEMS:
        yield from _filesystem(found, filesystem)
    yield from _notes(found)


def _setup(setup: Setup) -> str:
    return (
        f"| {setup.name} | {setup.kind}, {setup.conflict} | {'DAX' if setup.dax else 'not DAX'} |"
    )


def _measured(found: dict[str, Snapshot]) -> Iterator[str]:
    yield "| series | set-up | file system | kernel | date | rows | result |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for series, snapshot in found.items():
        for name, setup in SETUPS.items():
            if reason := snapshot.unavailable.get(name):
                yield f"| {series} | {name} | both | - | - | - | not to be had: {reason} |"
                continue
            for filesystem in FILESYSTEMS:
                one = snapshot.of(name, filesystem)
                if one is not None:
                    yield f"| {series} | {name} | {filesystem} | {_result(one, filesystem)} |"
                elif setup.chosen_on(series) and series in SERIES:
                    yield f"| {series} | {name} | {filesystem} | - | - | - | **not measured** |"


def _result(one: Measured, filesystem: str) -> str:
    counted = Counter(word.partition(":")[0] for word in one.rows.values())
    rows = ", ".join(f"{count} {word}" for word, count in sorted(counted.items()))
    risks = {word.partition(":")[2] for word in one.rows.values() if word.startswith("risk:")}
    result = f"holds, but for {', '.join(sorted(risks))}" if risks else "holds"
    if gaps := [row for row, word in one.rows.items() if word == "GAP"]:
        result = f"**broken**: {', '.join(gaps)}"
    if unknown := len([r for r in rows_of(filesystem) if one.rows.get(r, "?") == "?"]):
        result += f"; {unknown} rows not measured"
    return f"{one.kernel} | {one.date} | {rows} | {result}"


def _filesystem(found: dict[str, Snapshot], filesystem: str) -> Iterator[str]:
    paths = load().paths
    rows, routes = meanings()
    yield f"## {filesystem}\n"
    yield _RULE
    yield f"| row | means | rule | {' | '.join(SETUPS)} |"
    yield "| --- | --- | --- |" + " --- |" * len(SETUPS)
    for row in rows_of(filesystem):
        plain, _, route = row.partition("/")
        means = rows[plain] + (f", {routes[route]}" if route else "")
        rule = "; ".join(dict.fromkeys(rule_of(path) for path in paths_of(row, paths)))
        cells = [_cell(found, filesystem, row, name) for name in SETUPS]
        yield f"| `{row}` | {means} | {rule} | {' | '.join(cells)} |"
    yield ""


def _cell(found: dict[str, Snapshot], filesystem: str, row: str, setup: str) -> str:
    """ "-" where no kernel was measured with the set-up."""
    told = dict[str, list[str]]()
    for series, snapshot in found.items():
        if one := snapshot.of(setup, filesystem):
            told.setdefault(one.rows.get(row, "?"), []).append(series)
    if len(told) < 2:
        return next(iter(told), "-")
    return "; ".join(f"{word} ({', '.join(series)})" for word, series in told.items())


def _notes(found: dict[str, Snapshot]) -> Iterator[str]:
    """What the words do not say: each note with the rows of which it is, by place."""
    rows = dict[tuple[str, str], list[str]]()
    for series, snapshot in found.items():
        for setup, measured in snapshot.measured.items():
            for filesystem, one in measured.items():
                for row, note in one.notes.items():
                    rows.setdefault((note, f"{series} {setup} {filesystem}"), []).append(row)
    yield "## Notes\n"
    for (note, place), named in sorted(rows.items()):
        yield f"* {place}: {note}: {', '.join(f'`{row}`' for row in named)}"


def main() -> None:
    PAGE.write_text(text())


if __name__ == "__main__":
    main()
