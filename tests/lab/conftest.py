"""For tests that boot guests themselves."""

from __future__ import annotations

import pytest

from tests.lab.plugin import why_not


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> None:
    """There is a lab, or the test is skipped."""
    if reason := why_not(request.config):
        pytest.skip(reason)
