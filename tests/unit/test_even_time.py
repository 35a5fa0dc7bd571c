from __future__ import annotations

import asyncio
import time

from sealsvc.runtime import even_time
from tests.api.secrecy import told_apart


def _work(seconds: float) -> None:
    time.sleep(seconds)


def _answer(work: float, *, even: bool) -> None:
    """An answer after `work` seconds of work."""

    async def answered() -> None:
        began = time.monotonic()
        _work(work)
        if even:
            await even_time.passes(began)

    asyncio.run(answered())


def test_it_is_never_early_and_ends_at_a_step() -> None:
    async def late() -> list[float]:
        found = []
        for work in (0.0, 0.001, 0.02, even_time.STEP * 1.5):
            began = time.monotonic()
            _work(work)
            spent = time.monotonic() - began
            await even_time.passes(began)
            took = time.monotonic() - began
            assert took >= even_time.STEP * (1 + spent // even_time.STEP)
            found.append(took % even_time.STEP)
        return found

    # One of several attempts is not disturbed by others on the machine.
    assert min(max(asyncio.run(late())) for _ in range(20)) < 0.002


def test_work_that_differs_shows_without_it_alone() -> None:
    """What can tell two times apart cannot any more."""
    plain = told_apart(lambda: _answer(0.0, even=False), lambda: _answer(0.01, even=False), 60)
    assert plain > 0.7
    alike = told_apart(lambda: _answer(0.0, even=True), lambda: _answer(0.01, even=True), 60)
    assert abs(alike - 0.5) < 0.35
