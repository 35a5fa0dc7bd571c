"""Threads of the service and their nice values."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from sealsvc.runtime import priority
from sealsvc.runtime.workers import Workers


def _nice() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


def _in_a_thread(work: Callable[[], int]) -> int:
    """What `work` returns in a thread of its own: the nice value of this one stays."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_workers_are_preferred_as_who_starts_them_and_background_is_not() -> None:
    if os.geteuid() != 0:
        pytest.skip("raising the priority needs root")
    workers = Workers(1)

    def found() -> int:
        priority.prefer()
        assert _nice() == -10
        assert workers.of("grants").submit(_nice).result(10) == -10
        assert workers.of("scrub", is_background=True).submit(_nice).result(10) == 0
        return _nice()

    try:
        assert _in_a_thread(found) == -10
    finally:
        workers.stop()


def test_what_was_started_with_less_priority_keeps_it() -> None:
    def lowered() -> int:
        os.setpriority(os.PRIO_PROCESS, 0, max(5, _nice()))
        priority.be_usual()
        return _nice()

    assert _in_a_thread(lowered) >= 5
