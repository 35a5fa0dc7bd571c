"""The policy's file: what it may change, and what changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.runtime.config import Config
from sealsvc.service.reload import PolicyFile


def test_a_policy_that_is_none_changes_nothing(tmp_path: Path) -> None:
    path, taken = tmp_path / "sealsvc.toml", list[object]()
    file = PolicyFile(Config(), lambda section, changed: taken.append((section, changed)))
    with pytest.raises(Refusal, match="without a configuration file"):
        file.reload()
    file.source = path
    with pytest.raises(Refusal, match="io-error"):
        file.reload()
    for text in ("[policy", "[policy]\nsurprise = 1\n", "[policy]\nmax_grace = -1.0\n"):
        path.write_text(text)
        with pytest.raises(Refusal, match="bad-request"):
            file.reload()
    assert not taken
    path.write_text("[policy]\nmax_grace = 7.0\n[service]\nworkers = 2\n")
    report = file.reload()
    assert (report.changed, report.restart) == (["max_grace"], ["service.workers"])
    ((section, changed),) = taken  # type: ignore[misc]
    assert (section.max_grace, changed) == (7.0, ["max_grace"])
    assert file.reload().changed == []
