"""Alert rules and the Grafana dashboard: well-formed, tested, and about metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from sealsvc.protocol.admin import Histogram, MeasuresReport
from sealsvc_api import examples
from sealsvc_api.feed import Feed
from sealsvc_api.metrics import _of_api, _of_filesystems, _of_measures, _of_status, rendered

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"

promtool = pytest.mark.skipif(
    not shutil.which("promtool"), reason="no promtool: apt-get install prometheus"
)


def exposed() -> str:
    some = Histogram(bounds=[0.1, 1.0], counts=[3, 1, 2], sum=7.5)
    counters = ("conflicts", "conflicts_ended", "refusals", "transitions", "events")
    counters += ("integrity",)
    measures = MeasuresReport(
        run="5f3a91c2",
        counters={
            "ring_troubles": {"broken": 1, "dropped": 1},
            **{name: {"some": 1} for name in counters},
        },
        latencies=dict.fromkeys(("grant", "return", "recall", "conflict"), some),
        gauges={"queue": {"grants": 0.0}, "lapses": {"bpf": 0.0}},
    )
    every = ("grants", "recalls", "recalls_merged", "returns", "fences", "fences_failed")
    status = examples.STATUS
    status.counters.update(dict.fromkeys(every, 1))
    families = [
        *_of_status(status),
        *_of_measures(measures),
        *_of_filesystems(examples.FILESYSTEMS),
        *_of_api(Feed("/nowhere", 1, 1, 1)),
    ]
    return rendered(families).decode()


def samples() -> dict[str, float]:
    families = text_string_to_metric_families(exposed())
    return {
        sample.name + str(sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_it_is_openmetrics() -> None:
    found = samples()
    assert exposed().endswith("# EOF\n")
    assert found["sealsvc_grant_seconds_bucket[('le', '+Inf')]"] == 6.0
    assert found["sealsvc_grant_seconds_sum[]"] == 7.5
    assert found["sealsvc_conflicts_total[('verdict', 'some')]"] == 1.0
    assert found["sealsvc_drifts_total[]"] == 0.0


def used_in(text: str) -> set[str]:
    return set(re.findall(r"\bsealsvc_[a-z_]+", text))


@pytest.mark.parametrize("name", ["alerts.yml", "dashboard.json"])
def test_only_metrics_that_there_are_are_used(name: str) -> None:
    there = {name.partition("[")[0] for name in samples()}
    used = used_in((PROMETHEUS / name).read_text())
    assert used
    assert used <= there, used - there


def test_the_dashboard_is_whole() -> None:
    board = json.loads((PROMETHEUS / "dashboard.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) == 12
    assert all(panel["targets"] for panel in board["panels"])


@promtool
@pytest.mark.parametrize(
    "command",
    [("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")],
    ids=["check", "test"],
)
def test_rules_by_promtool(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_expressions_of_the_dashboard(tmp_path: Path) -> None:
    """As rules, which promtool parses."""
    board = json.loads((PROMETHEUS / "dashboard.json").read_text())
    expressions = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    rules = [
        {"record": f"sealsvc:panel:{n}", "expr": e.replace("$instance", ".*")}
        for n, e in enumerate(expressions)
    ]
    path = tmp_path / "rules.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
