"""The marker `lab`: a test with it runs inside the virtual machine.

Guests cost seconds and Python is slow in them, so the marked tests of one file that want the same
kernel share a guest: pytest runs there with exactly their names, and sends each report out as a
line of JSON, which is replayed here as if the test had run here. A test at which the guest dies
fails; those after it get another guest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.lab.guest import LabError, MiB, run
from tests.lab.kernels import DEFAULT, unavailable

INSIDE = "SEALSVC_LAB" in os.environ
_REPORTS = "SEALSVC_LAB_REPORTS"
_TIMEOUT = 900.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-lab", action="store_true", help="skip the tests that boot the lab")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    marker = item.get_closest_marker("lab")
    if marker is None or INSIDE:
        return None
    results: Results = item.config.stash.setdefault(_RESULTS, Results(item.session))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in results.of(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _wanted(item: pytest.Item) -> dict[str, object]:
    """kernel, cpus, memory (MiB) and pmem (MiB), as the marker says."""
    marker = item.get_closest_marker("lab")
    assert marker is not None
    parameters = getattr(item, "callspec", None)
    chosen = {"kernel": DEFAULT, "cpus": 1, "memory": 3072, "pmem": 1024, **marker.kwargs}
    if parameters is not None and "lab_kernel" in parameters.params:
        chosen["kernel"] = parameters.params["lab_kernel"]
    return chosen


class Results:
    """The reports of lab tests, made a guest at a time when the first of them is asked for."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._reports: dict[str, list[pytest.TestReport]] = {}

    def of(self, item: pytest.Item) -> list[pytest.TestReport]:
        while item.nodeid not in self._reports:
            self._boot(item)
        return self._reports[item.nodeid]

    def _boot(self, first: pytest.Item) -> None:
        """Run `first` and its companions that have no report yet. Afterwards it has one."""
        wanted = _wanted(first)
        if reason := self._unavailable(str(wanted["kernel"])):
            self._reports[first.nodeid] = [_skipped(first, reason)]
            return
        group = [
            item
            for item in self._session.items
            if item.path == first.path
            and item.get_closest_marker("lab")
            and item.nodeid not in self._reports
            and _wanted(item) == wanted
        ]
        with tempfile.TemporaryDirectory(prefix="sealsvc-lab-share-") as directory:
            share = Path(directory)
            failure = self._run(group, wanted, share)
            done = self._read(share / "reports")
        for item in group:
            if item.nodeid in done:
                self._reports[item.nodeid] = done[item.nodeid]
            elif failure:  # this one ended the guest; those behind it get another
                self._reports[item.nodeid] = [_failed(item, failure)]
                return
        if first.nodeid not in self._reports:
            self._reports[first.nodeid] = [_failed(first, failure or "no report came")]

    def _run(self, group: list[pytest.Item], wanted: dict[str, object], share: Path) -> str | None:
        names = [item.nodeid for item in group]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names]
        try:
            done = run(
                command,
                str(wanted["kernel"]),
                timeout=_TIMEOUT,
                cpus=int(str(wanted["cpus"])),
                memory=int(str(wanted["memory"])) * MiB,
                pmem=int(str(wanted["pmem"])) * MiB,
                share=share,
                environment={_REPORTS: "reports"},
            )
        except (LabError, OSError, subprocess.SubprocessError) as error:
            return str(error)
        if done.status not in (0, 1):
            return f"pytest in the guest: status {done.status}\n{done.stdout}\n{done.stderr}"
        return None

    def _read(self, path: Path) -> dict[str, list[pytest.TestReport]]:
        """Whole tests only: one without its teardown was cut off."""
        found: dict[str, list[pytest.TestReport]] = {}
        config = self._session.config
        for line in path.read_text().splitlines() if path.exists() else []:
            data = json.loads(line)
            report = config.hook.pytest_report_from_serializable(config=config, data=data)
            found.setdefault(report.nodeid, []).append(report)
        return {name: all_ for name, all_ in found.items() if all_[-1].when == "teardown"}

    def _unavailable(self, series: str) -> str | None:
        if self._session.config.getoption("--no-lab"):
            return "--no-lab"
        return unavailable(series)


_RESULTS = pytest.StashKey[Results]()


def _skipped(item: pytest.Item, reason: str) -> pytest.TestReport:
    path, line = str(item.path), item.location[1] or 0
    return _report(item, "skipped", (path, line, f"Skipped: {reason}"))


def _failed(item: pytest.Item, why: str) -> pytest.TestReport:
    return _report(item, "failed", why)


def _report(
    item: pytest.Item, outcome: str, longrepr: str | tuple[str, int, str]
) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords={},
        outcome=outcome,  # type: ignore[arg-type]
        longrepr=longrepr,
        when="call" if outcome == "failed" else "setup",
    )


# Inside the guest: every report is written down as it is made.


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    if INSIDE and _REPORTS in os.environ:
        path = Path(os.environ["SEALSVC_LAB_SHARE"], os.environ[_REPORTS])
        config.pluginmanager.register(_Writer(config, path), "lab-writer")


class _Writer:
    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config, self._path = config, path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with self._path.open("a") as out:
            out.write(json.dumps(data) + "\n")


@pytest.fixture
def lab_share() -> Path:
    """A directory that guest and host share, inside the guest."""
    return Path(os.environ["SEALSVC_LAB_SHARE"])
