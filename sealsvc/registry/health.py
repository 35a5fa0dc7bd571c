"""Whether the registry can be written: one alarm when it cannot, one word when it can again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Health:
    """A time of trouble begins with the first part that fails, and is over when no part has failed
    for `quiet` seconds: a full disk may let something through now and then. `alarm(reason)` is
    called once for each, `recovered(lost)` at its end; either on any thread."""

    def __init__(
        self, alarm: Callable[[str], None], recovered: Callable[[int], None], quiet: float
    ) -> None:
        self._alarm, self._recovered, self._quiet = alarm, recovered, quiet
        self._lock = threading.Lock()
        self._failing: dict[str, str] = {}
        self._troubled = False
        self._well_since = 0.0
        self._lost_before = 0

    @property
    def troubled(self) -> bool:
        return self._troubled

    @property
    def reasons(self) -> list[str]:
        """Of the parts that fail right now."""
        return list(self._failing.values())

    def has(self, part: str) -> bool:
        return part in self._failing

    def trouble(self, part: str, reason: str, lost: int) -> None:
        """`lost` is how many events were lost until now."""
        with self._lock:
            first, self._troubled = not self._troubled, True
            new = part not in self._failing
            self._failing[part] = reason
            if first:
                self._lost_before = lost
        if first:
            log.error("the registry is not written: %s", reason)
            _safely(
                self._alarm,
                f"the registry is not written: {reason}; seals are enforced as before",
            )
        elif new:
            log.warning("the registry: %s", reason)

    def well(self, part: str) -> None:
        with self._lock:
            if self._failing.pop(part, None) is not None and not self._failing:
                self._well_since = time.monotonic()

    def over(self, lost: int) -> int | None:
        """Once, when a time of trouble is over: the number of events that were lost in it."""
        with self._lock:
            quiet = not self._failing and time.monotonic() - self._well_since >= self._quiet
            if not (self._troubled and quiet):
                return None
            self._troubled = False
            return lost - self._lost_before

    def tell(self, lost: int) -> None:
        log.warning("the registry is written again; %d events were lost", lost)
        _safely(self._recovered, lost)


def _safely(tell: Callable[[T], None], value: T) -> None:
    try:
        tell(value)
    except Exception:
        log.exception("nobody could be told of the registry's state")
