"""Waiting for something that another thread, process or kernel brings about."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

# Seconds; some things are slow in the lab, and slower where others want the machine, too.
PATIENCE = float(os.environ.get("SEALSVC_TEST_PATIENCE", "120"))


def until(condition: Callable[[], bool], seconds: float = PATIENCE, what: str = "it") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came true"
        time.sleep(0.01)
