"""map and doctor, which look at files themselves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import ONE, FakeDaemon
from sealctl_process import Start

from sealsvc.cli.sealctl import main
from sealsvc.core.model import Kind
from sealsvc.protocol.seals import List, SealPage


def test_map_does_not_recall_an_exclusive_seal(
    daemon: FakeDaemon, sealctl: Start, tmp_path: Path
) -> None:
    running = sealctl("map", tmp_path / "f")
    assert daemon.serve(List, SealPage(seals=[ONE])).path == str(tmp_path / "f")
    status, _, err = running.result()
    assert status == 6
    assert f"sealctl show --extents {ONE.id}" in err


def test_map_of_a_real_file(sealctl: Start, tmp_path: Path) -> None:
    pytest.importorskip(
        "sealsvc.linux.native", reason="the native module is not built", exc_type=ImportError
    )
    file = tmp_path / "f"
    with file.open("wb") as out:
        out.write(b"x" * 65536)
        out.seek(1 << 20)
        out.write(b"y" * 4096)
        out.flush()
        os.fsync(out.fileno())
    status, out_text, err = sealctl("map", file, "-o", "json").result()
    if status == 5:
        pytest.skip(f"no FIEMAP here: {err}")
    assert status == 0, err
    found = json.loads(out_text)
    assert (found["type"], found["path"], found["size"]) == (
        "extent-map",
        str(file),
        (1 << 20) + 4096,
    )
    assert found["summary"]["mapped"] >= 65536 + 4096
    assert found["summary"]["extents"] == len(found["extents"]) >= 2
    status, out_text, err = sealctl("map", file, "--limit", "1").result()
    assert (status, err) == (0, "")
    assert "more (--limit 0 shows all)" in out_text
    assert "hole" in out_text
    assert sealctl("map", tmp_path / "none").result()[0] == 4
    assert sealctl("map", tmp_path).result()[0] == 5


def test_doctor_is_told_what_to_measure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = pytest.importorskip(
        "sealsvc.doctor.report", reason="the native module is not built", exc_type=ImportError
    )
    asked: dict[str, Any] = {}

    def measure(path: str, **only: Any) -> Any:
        asked.update(only, path=path)
        row = report.Row(
            operation="truncate",
            kind=Kind.SHARED,
            conflict="wait",
            enforcer="bpf",
            result=report.Result.REFUSED,
            errno="ETXTBSY",
        )
        return report.Report(filesystem="xfs", kernel="6.18", enforcers=["bpf"], coverage=[row])

    monkeypatch.setattr(report, "measure", measure)
    arguments = ["--enforcer", "bpf,pin", "--kind", "shared", "--operation", "truncate"]
    assert main(["doctor", str(tmp_path), *arguments]) == 0
    assert asked["enforcers"] == ["bpf", "pin"]
    assert asked["kinds"] == [Kind.SHARED]
    assert [str(conflict) for conflict in asked["conflicts"]] == ["wait", "refuse"]
    assert asked["operations"] == ["truncate"]
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "xfs on Linux 6.18, enforcers: bpf"
    row = " ".join(out.splitlines()[2].split())
    assert row == "truncate shared wait bpf refused ETXTBSY kept"
    assert out.splitlines()[-1] == "verdict: the promise holds here: 1 operations tried"


def test_the_doctors_verdict_and_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = pytest.importorskip(
        "sealsvc.doctor.report", reason="the native module is not built", exc_type=ImportError
    )

    def row(operation: str, kind: Kind, enforcer: str, *, covered: bool) -> Any:
        found = report.Result.WAITS if covered else report.Result.NOT_COVERED
        return report.Row(
            operation=operation, kind=kind, conflict="wait", enforcer=enforcer, result=found
        )

    fine = row("truncate-into", Kind.EXCLUSIVE, "fanotify", covered=True)
    gap = row("xfs-swapext-donor", Kind.SHARED, "fanotify", covered=False)
    overlaid = row("truncate-into/overlay", Kind.EXCLUSIVE, "fanotify", covered=False)
    worse = row("xfs-swapext-donor", Kind.EXCLUSIVE, "fanotify", covered=False)
    backed = row("xfs-swapext-donor", Kind.SHARED, "fanotify+bpf", covered=False)
    for rows, status, verdict in (
        ([fine], 0, "holds"),
        ([fine, gap, overlaid], 0, "holds-with-gaps"),
        ([fine, worse], 1, "broken"),
        ([fine, backed], 1, "broken"),
        ([], 1, "broken"),
    ):
        made = report.Report(filesystem="xfs", kernel="6.18", enforcers=[], coverage=rows)
        monkeypatch.setattr(report, "measure", lambda *_, made=made, **__: made)
        assert main(["doctor", str(tmp_path), "--only-gaps", "-o", "json"]) == status
        told = json.loads(capsys.readouterr().out)
        assert told["verdict"] == verdict
        assert "truncate-into" not in [shown["operation"] for shown in told["coverage"]]
