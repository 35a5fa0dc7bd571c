"""How long refused and missing answers take tells nothing: they go out at whole steps."""

from __future__ import annotations

import asyncio
import time

from sealsvc.runtime import even_time
from tests.api.secrecy import told_apart
from tests.support.waiting import until


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

    # One of many attempts is not disturbed by others on the machine.
    until(lambda: max(asyncio.run(late())) < 0.002)


def test_work_that_differs_shows_without_it_alone() -> None:
    """What can tell two times apart cannot any more."""

    def apart(*, even: bool) -> float:
        return told_apart(lambda: _answer(0.0, even=even), lambda: _answer(0.01, even=even), 60)

    # What tells them apart does so each time; others on the machine may disturb some.
    assert any(apart(even=False) > 0.7 for _ in range(10))
    assert any(abs(apart(even=True) - 0.5) < 0.35 for _ in range(10))
