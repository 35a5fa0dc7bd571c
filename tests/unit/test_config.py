"""The configuration file."""

from __future__ import annotations

import pytest

from sealsvc.runtime import config
from sealsvc.runtime.config import ConfigError


def test_operators_may_be_named() -> None:
    found = config.parse(b'[policy]\noperators = ["root", 7]\n', None)
    assert found.policy.operators == [0, 7]
    with pytest.raises(ConfigError, match="no user 'nobody-at-all'"):
        config.parse(b'[policy]\noperators = ["nobody-at-all"]\n', None)
