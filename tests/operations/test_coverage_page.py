"""docs/coverage.md says what was measured, of all the doctor's rows, by rules that there are."""

from __future__ import annotations

import re

import msgspec
import pytest

from sealsvc.core.model import Conflict, Kind
from sealsvc.doctor.promise import Verdict, judged
from sealsvc.doctor.report import Row
from sealsvc.doctor.verdict import Result
from tests.operations import coverage, coverage_page
from tests.operations.coverage import FILESYSTEMS, SERIES, SETUPS, WORDS, Measured, Snapshot
from tests.operations.coverage_page import PAGE
from tests.operations.table import load

PATHS = load().paths
KERNELS = coverage.kernels()
PLACES = [
    (series, setup, filesystem, one)
    for series, snapshot in KERNELS.items()
    for setup, measured in snapshot.measured.items()
    for filesystem, one in measured.items()
]
MEASURED = [
    (series, setup, filesystem, row, word)
    for series, setup, filesystem, one in PLACES
    for row, word in one.rows.items()
]


def test_the_page_says_what_the_snapshots_say() -> None:
    """`python -m tests.operations.coverage_page` writes it."""
    assert PAGE.read_text() == coverage_page.text()


def test_something_was_measured() -> None:
    assert any(word != "?" for *_, word in MEASURED)


@pytest.mark.parametrize("series", KERNELS)
def test_each_set_up_was_measured_or_the_page_says_that_it_was_not(series: str) -> None:
    for name, setup in SETUPS.items():
        for filesystem in FILESYSTEMS:
            one = KERNELS[series].of(name, filesystem)
            if one is not None:
                assert f"{one.kernel}.".startswith(f"{series}.")
                line = f"| {series} | {name} | {filesystem} | {one.kernel} | {one.date} |"
            elif name in KERNELS[series].unavailable:
                line = f"| {series} | {name} | both | - | - | - | not to be had: "
            elif setup.chosen_on(series) and series in SERIES:
                line = f"| {series} | {name} | {filesystem} | - | - | - | **not measured** |"
            else:
                continue
            assert f"\n{line}" in PAGE.read_text()


@pytest.mark.parametrize(("series", "setup", "filesystem", "one"), PLACES)
def test_no_row_of_the_doctor_is_missing(
    series: str, setup: str, filesystem: str, one: Measured
) -> None:
    """Else: `python -m tests.lab.coverage --missing`."""
    assert list(one.rows) == coverage.rows_of(filesystem), f"{series} {setup}"
    assert one.notes.keys() <= one.rows.keys()
    assert all(one.notes.get(row) for row, word in one.rows.items() if word == "?")


@pytest.mark.parametrize("filesystem", FILESYSTEMS)
def test_each_row_of_the_doctor_has_a_line(filesystem: str) -> None:
    _, _, rest = PAGE.read_text().partition(f"## {filesystem}\n")
    section = rest.partition("\n## ")[0]
    assert re.findall(r"^\| `([^`]+)` \|", section, re.M) == coverage.rows_of(filesystem)
    for line in section.splitlines():
        if line.startswith("| `"):
            _, means, rule, *cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            assert means
            assert rule or line.split("`")[1] in UNRULED, line
            assert len(cells) == len(SETUPS), line


# Tools whose system calls have rows and rules of their own.
UNRULED = {"cp-over", "fallocate-tool", "truncate-tool"}


def test_each_row_of_the_doctor_has_a_meaning() -> None:
    rows, routes = coverage_page.meanings()
    named = [row.partition("/") for fs in FILESYSTEMS for row in coverage.rows_of(fs)]
    assert {plain for plain, _, _ in named} == set(rows)
    assert {route for _, _, route in named if route} == set(routes)


def test_the_words_are_explained() -> None:
    known = {word.partition(":")[0] for word in WORDS}
    assert {word.partition(":")[0] for *_, word in MEASURED} <= known


def test_what_changes_a_sealed_map_is_a_risk_by_name() -> None:
    unnamed = [place for *place, word in MEASURED if word == "GAP"]
    assert not unnamed


def test_nothing_gets_past_bpf() -> None:
    passed = [
        (series, setup, filesystem, row)
        for series, setup, filesystem, row, word in MEASURED
        if "bpf" in setup.split("+") and word.startswith(("risk:", "GAP"))
    ]
    assert not passed


def test_what_is_a_risk_may_conflict_by_the_rule_book() -> None:
    wrong = [
        (series, setup, filesystem, row, word)
        for series, setup, filesystem, row, word in MEASURED
        if word.startswith("risk:") and not may_conflict(row, filesystem)
    ]
    assert not wrong


def may_conflict(row: str, filesystem: str) -> bool:
    paths = coverage_page.paths_of(row, PATHS)
    return not paths or any(coverage_page.may_conflict(path, filesystem) for path in paths)


def test_bpf_refuses_what_the_rule_book_says_and_nothing_else() -> None:
    """It knows what the kernel really does, so that nothing is judged by guesses."""
    wrong = [
        (series, filesystem, row, word)
        for series, setup, filesystem, row, word in MEASURED
        if setup == "bpf" and word.startswith("refused") and not may_conflict(row, filesystem)
    ]
    assert not wrong


def row(operation: str, result: Result, enforcer: str = "fanotify", note: str = "") -> Row:
    return Row(
        operation=operation,
        kind=Kind.SHARED,
        conflict=Conflict.WAIT,
        enforcer=enforcer,
        result=result,
        note=note,
    )


@pytest.mark.parametrize(
    ("measured", "word"),
    [
        (row("pwrite", Result.PASSED), "passes"),
        (row("truncate-into", Result.WAITS), "waits"),
        (row("truncate-into", Result.REFUSED), "refused"),
        (
            row("loop-write/early", Result.REFUSED, "", "at grant: backs-loop-device"),
            "no-seal:backs-loop-device",
        ),
        (row("ext4-swap-boot", Result.NOT_COVERED), "risk:ext4-swap-boot"),
        (row("ext4-swap-boot", Result.NOT_COVERED, "bpf"), "GAP"),
        (row("truncate-into", Result.NOT_COVERED), "GAP"),
        (row("file-setattr", Result.NOT_APPLICABLE, ""), "n/a"),
    ],
)
def test_the_words_are_those_of_the_verdict(measured: Row, word: str) -> None:
    assert coverage.word_of(measured) == word
    assert (judged([measured]).verdict is Verdict.BROKEN) == (word in ("GAP", "n/a"))


def test_an_errno_is_told() -> None:
    refused = msgspec.structs.replace(row("open-trunc", Result.REFUSED), errno="ETXTBSY")
    assert coverage.word_of(refused) == "refused:ETXTBSY"


def measured(kernel: str, **words: str) -> Measured:
    made = Measured(kernel, "2026-01-01", 5)
    for name, word in words.items():
        made.add(name, word, "why" if word == "?" else "")
    return made


def test_a_part_is_measured_anew_beside_what_is_there() -> None:
    kept = Snapshot(unavailable={"bpf": "no"})
    kept.keep("bpf", "xfs", measured("6.18.1", unlink="passes", rename="?"))
    assert kept.unavailable == {}
    assert "rename" in kept.missing("bpf", "xfs")
    assert "unlink" not in kept.missing("bpf", "xfs")
    kept.keep("bpf", "xfs", measured("6.18.1", rename="passes", unlink="?"))
    both = measured("6.18.1", unlink="passes", rename="passes")
    both.seconds = 10
    assert kept.of("bpf", "xfs") == both
    kept.keep("bpf", "xfs", measured("6.18.2", link="?"))
    assert kept.of("bpf", "xfs") == measured("6.18.2", link="?")
