"""The marker `lab`: a test with it runs inside the virtual machine.

    @pytest.mark.lab
    @pytest.mark.lab(kernel="6.12", cpus=2, memory=2048, pmem=512)      sizes in MiB
    @pytest.mark.lab(kernel=["6.18", "6.1"], pmem=(512, 512))           once on each kernel
    @pytest.mark.lab(nvme=("ms=8,pi=1",))                               NVMe namespaces

Guests cost seconds, so the selected tests of one file that want the same guest share it: pytest
runs there with exactly their names, and writes down each report, which is replayed here as if the
test had run here. A test at which the guest dies fails; those behind it get another guest.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab.guest import LabError, run
from tests.lab.kernels import DEFAULT, unavailable
from tests.lab.qemu import MACHINE, Machine, MiB

INSIDE = "SEALSVC_LAB" in os.environ
_REPORTS = "SEALSVC_LAB_REPORTS"
_OURS = "SEALSVC_"  # how much the tests are to do: for them, wherever they run
_TEST_SECONDS = 300  # for a test that does not say: the guest's processor is some ten times slower
_GUEST_SECONDS = 1800.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-lab", action="store_true", help="skip the tests that boot the lab")
    parser.addoption(
        "--long",
        "--exhaustive",
        action="store_true",
        help="run the tests marked `long` as well: they repeat, for minutes, what others show",
    )
    parser.addoption(
        "--lab-minutes",
        type=float,
        default=30.0,
        help="start no guest for tests later than so many minutes after the first (30; 0: do)",
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := why_left_out(item):
        pytest.skip(reason)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("lab")
    kernels = marker.kwargs.get("kernel") if marker else None
    if isinstance(kernels, list | tuple):
        metafunc.fixturenames.append("lab_kernel")
        metafunc.parametrize("lab_kernel", kernels)


def why_not(config: pytest.Config, kernel: str = DEFAULT) -> str | None:
    """Why no guest with this kernel can be booted in this run."""
    if INSIDE:
        return "this is the guest"
    return "--no-lab" if config.getoption("--no-lab") else unavailable(kernel)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Older kernels last: if there is not time for everything, the newest matters most. Where files
    are shared out to workers (pytest-xdist), those that take longest come first."""
    if not INSIDE:
        items.sort(key=_is_of_older_kernel)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("lab") is None)


def _is_of_older_kernel(item: pytest.Item) -> bool:
    return item.get_closest_marker("lab") is not None and _Wanted.by(item).kernel != DEFAULT


# On the host: reports from guests stand in for the runs of marked tests.


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if INSIDE or item.get_closest_marker("lab") is None:
        return None
    results = item.config.stash.setdefault(_RESULTS, _Results(item.session))
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in (*results.of(item), *_torn_down(item, nextitem)):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_timeout_set_timer(item: pytest.Item) -> bool | None:
    """The time of one test is counted in the guest; here it may be that of many, and of a boot."""
    return True if item.get_closest_marker("lab") and not INSIDE else None


def _torn_down(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Fixtures of tests that ran here before may end with this one. What fails then is told."""
    state = item.session._setupstate
    call = pytest.CallInfo.from_call(lambda: state.teardown_exact(nextitem), "teardown")
    if call.excinfo is None:
        return []
    return [item.ihook.pytest_runtest_makereport(item=item, call=call)]


def why_left_out(item: pytest.Item) -> str:
    """Why a test marked `long` is not run in this run; "" where it is."""
    if INSIDE or not item.get_closest_marker("long"):
        return ""
    return "" if item.config.getoption("--long") else "takes minutes: --long"


@dataclass(frozen=True)
class _Wanted:
    """The guest that a test asks for."""

    path: Path
    kernel: str
    machine: Machine

    @classmethod
    def by(cls, item: pytest.Item) -> _Wanted:
        marker = item.get_closest_marker("lab")
        assert marker is not None
        asked = dict(marker.kwargs)
        kernel = asked.pop("kernel", DEFAULT)
        if callspec := getattr(item, "callspec", None):
            kernel = callspec.params.get("lab_kernel", kernel)
        cpus = asked.pop("cpus", MACHINE.cpus)
        memory = asked.pop("memory", MACHINE.memory // MiB) * MiB
        pmem = asked.pop("pmem", [size // MiB for size in MACHINE.pmem])
        sizes = [pmem] if isinstance(pmem, int) else pmem
        nvme = tuple(asked.pop("nvme", ()))
        assert not asked, f"{item.nodeid}: the marker lab knows no {', '.join(asked)}"
        machine = Machine(cpus, memory, tuple(size * MiB for size in sizes if size), nvme)
        return cls(item.path, kernel, machine)


class _Results:
    """The reports of lab tests, made a guest at a time when the first of them is asked for."""

    def __init__(self, session: pytest.Session) -> None:
        self._session = session
        self._reports: dict[str, list[pytest.TestReport]] = {}
        self._until = 0.0

    def of(self, item: pytest.Item) -> list[pytest.TestReport]:
        if item.nodeid not in self._reports:
            wanted = _Wanted.by(item)
            if reason := (
                why_left_out(item) or why_not(item.config, wanted.kernel) or self._time_is_up()
            ):
                where = (str(item.path), (item.location[1] or 0) + 1, f"Skipped: {reason}")
                return [_report(item, "skipped", where)]
            self._boot(self._companions(wanted), wanted)
        return self._reports[item.nodeid]

    def _time_is_up(self) -> str:
        minutes = self._session.config.getoption("--lab-minutes")
        self._until = self._until or time.monotonic() + minutes * 60
        if minutes and time.monotonic() > self._until:
            return f"the lab has had its {minutes:g} minutes (--lab-minutes)"
        return ""

    def _companions(self, wanted: _Wanted) -> list[pytest.Item]:
        return [
            item
            for item in self._session.items
            if item.path == wanted.path
            and item.get_closest_marker("lab")
            and item.nodeid not in self._reports
            and not why_left_out(item)
            and _Wanted.by(item) == wanted
        ]

    def _boot(self, group: list[pytest.Item], wanted: _Wanted) -> None:
        """At least the first of the group has reports afterwards."""
        with tempfile.TemporaryDirectory(prefix="sealsvc-share-") as directory:
            share = Path(directory)
            died, story = _run_inside(group, wanted, share)
            done = _read(self._session.config, share / "reports")
        for item in group:
            if item.nodeid in done:
                self._reports[item.nodeid] = done[item.nodeid]
                continue
            self._reports[item.nodeid] = [_report(item, "failed", story)]
            if died:  # at this one; those behind it get another guest
                return


def _run_inside(group: list[pytest.Item], wanted: _Wanted, share: Path) -> tuple[bool, str]:
    """Whether the guest or its pytest died, and what to say of a test that has no report."""
    names = [item.nodeid for item in group]
    # Importing what no test in there uses takes a minute on an emulated processor.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "pytest_timeout",
    ]
    try:
        done = run(
            [*command, "-o", f"timeout={_TEST_SECONDS}", *names],
            wanted.kernel,
            timeout=_GUEST_SECONDS,
            machine=wanted.machine,
            share=share,
            environment={
                **{name: value for name, value in os.environ.items() if name.startswith(_OURS)},
                _REPORTS: "reports",
                "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            },
        )
    except (LabError, OSError, subprocess.SubprocessError) as error:
        return True, str(error)
    said = f"{done.stdout}\n{done.stderr}"
    killed = done.status > 128  # as a test may do to the process that it runs in
    return killed, f"no report; pytest in the guest ended with status {done.status}\n{said}"


def _read(config: pytest.Config, path: Path) -> dict[str, list[pytest.TestReport]]:
    """By test; whole tests only: one without its teardown was cut off."""
    found: dict[str, list[pytest.TestReport]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            data = json.loads(line)
        except ValueError:  # the last line, cut off
            break
        report = config.hook.pytest_report_from_serializable(config=config, data=data)
        if isinstance(report.longrepr, list):  # why it was skipped: JSON knows no tuples
            report.longrepr = tuple(report.longrepr)
        found.setdefault(report.nodeid, []).append(report)
    return {name: reports for name, reports in found.items() if reports[-1].when == "teardown"}


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


_RESULTS = pytest.StashKey[_Results]()


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
