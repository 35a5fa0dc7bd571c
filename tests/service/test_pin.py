"""Pins need DAX: elsewhere they are refused, and told why. tests/lab/test_pin.py has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from sealsvc.client import Client
from tests.support.refusals import refusal
from tests.support.service import RISKS, serving

pytestmark = pytest.mark.kernel


def test_without_dax_there_is_no_pin(root: Path, tmp_path: Path, file: Path) -> None:
    with (
        serving(tmp_path, [root], RISKS + '[enforcers]\nuse = ["pin"]\n') as socket,
        Client(socket) as client,
    ):
        found = refusal(lambda: client.grant(path=str(file), kind="shared"))
    assert found.code == "enforcer-unavailable"
    assert "pin: the file system is not mounted with dax=always" in found.message
