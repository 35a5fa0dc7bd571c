"""The verdict of `./dev bench` on its figures: met, missed, and the status it exits with."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.figures import Bench, Figure, figure_of
from tests.bench.outcome import Outcome

AT_GOAL = Figure("at goal", "us", 40.0, 50.0, 10.0, "a floor", 4.0, 4.0)
BENCH = Bench(Path("/nowhere"), "", Path("/nowhere"), 0, [])


def outcome(*figures: Figure) -> Outcome:
    made = Outcome(io.StringIO())
    made.add(figures)
    return made


def test_a_ratio_above_the_goal_is_missed() -> None:
    missed = replace(AT_GOAL, ratio=4.01)
    assert (AT_GOAL.met, AT_GOAL.verdict, AT_GOAL.wanted) == (True, "met", "<= 4")
    assert (missed.met, missed.verdict) == (False, "MISSED")


def test_a_ratio_below_a_least_goal_is_missed() -> None:
    figure = replace(AT_GOAL, ratio=0.69, goal=0.7, at_least=True)
    assert (figure.verdict, figure.wanted) == ("MISSED", ">= 0.7")
    assert replace(figure, ratio=0.7).met


def test_what_is_no_number_is_missed() -> None:
    assert not replace(AT_GOAL, ratio=float("nan")).met
    assert not replace(AT_GOAL, ratio=float("nan"), at_least=True).met


@pytest.mark.parametrize(("goal", "why"), [(None, ""), (4.0, "it has one")])
def test_a_figure_has_a_goal_or_says_why_not(goal: float | None, why: str) -> None:
    with pytest.raises(ValueError, match="at goal"):
        replace(AT_GOAL, goal=goal, no_goal=why)


def test_the_status_tells_of_one_missed_goal_among_many() -> None:
    no_goal = figure_of("told", [3.0], [1.0], "a floor", None, no_goal="it only tells")
    assert outcome(AT_GOAL, no_goal).status == 0
    assert outcome(AT_GOAL, no_goal, replace(AT_GOAL, ratio=5.0)).status == 1


def test_a_run_that_measured_nothing_has_not_succeeded() -> None:
    assert outcome().status == 1


def test_the_summary_has_each_figure_and_the_counts() -> None:
    made = outcome(
        AT_GOAL,
        replace(AT_GOAL, name="slow", ratio=9.0),
        figure_of("told", [3.0], [1.0], "a floor", None, no_goal="it only tells"),
    )
    made.left_out["lab"] = "not asked for"
    *figures, left_out, counts = made.summary().splitlines()
    assert [line.split()[0] for line in figures] == ["at", "slow", "told"]
    assert [line.split()[-1] for line in figures] == ["met", "MISSED", "tells"]
    assert "no goal: it only tells" in figures[2]
    assert left_out.endswith("left out: not asked for")
    assert counts == "1 of 2 goals met, 1 missed, 1 figures without a goal, 0 failed"


def test_a_benchmark_that_fails_stops_no_other_and_is_no_success() -> None:
    made = outcome()

    def broken(bench: Bench, rounds: int) -> Figure:
        raise OSError(122, "Disk quota exceeded")

    made.measure("broken", broken, BENCH, 1)
    made.measure("good", lambda bench, rounds: AT_GOAL, BENCH, 1)
    assert made.status == 1
    assert made.figures == [AT_GOAL]
    assert "Disk quota exceeded" in made.failed["broken"]
    assert "broken" in made.summary()
    assert "FAILED" in made.summary()


def test_figures_of_another_run_count(tmp_path: Path) -> None:
    there = Outcome(out := io.StringIO())
    there.add([replace(AT_GOAL, name="in the lab", ratio=5.0, peers={"x": 1.0})])
    found = tmp_path / "lab.jsonl"
    found.write_text(out.getvalue())
    here = outcome(AT_GOAL)
    here.read(found)
    assert here.figures == [AT_GOAL, *there.figures]
    assert here.status == 1
    here.read(tmp_path / "missing")
    assert len(here.figures) == 2
    assert json.loads(out.getvalue())["name"] == "in the lab"
