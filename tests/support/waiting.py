"""Waiting for something that another thread, process or kernel brings about."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_LONGEST = 0.25  # seconds between two looks
# Seconds; some things are slow in the lab, and slower where others want the machine, too.
PATIENCE = float(os.environ.get("SEALSVC_TEST_PATIENCE", "120"))


def until(condition: Callable[[], bool], seconds: float = PATIENCE, what: str = "it") -> None:
    """The longer it takes, the less often it is looked at: on a slow machine looking would take the
    time from what is waited for."""
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < seconds, f"{what} never came true"
        time.sleep(min(_LONGEST, 0.01 + waited / 20))
