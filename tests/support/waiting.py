"""Waiting for something that another thread, process or kernel brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 120.0  # seconds; some things are slow in the lab


def until(condition: Callable[[], bool], seconds: float = PATIENCE, what: str = "it") -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} never came true"
        time.sleep(0.01)
