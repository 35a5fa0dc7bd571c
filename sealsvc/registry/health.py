"""Whether the registry can be written: one alarm when it cannot, one word when it can again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)


class Health:
    """`alarm(reason)` is called once for each time of trouble, `recovered(lost)` at its end, with
    the number of events lost since it began. Either on any thread."""

    def __init__(self, alarm: Callable[[str], None], recovered: Callable[[int], None]) -> None:
        self._alarm, self._recovered = alarm, recovered
        self._lock = threading.Lock()
        self._troubles: dict[str, str] = {}
        self._lost_before = 0

    @property
    def troubles(self) -> list[str]:
        return list(self._troubles.values())

    def has(self, part: str) -> bool:
        return part in self._troubles

    def trouble(self, part: str, reason: str, lost: int) -> None:
        """`lost` is how many events were lost until now."""
        with self._lock:
            first = not self._troubles
            new = part not in self._troubles
            self._troubles[part] = reason
            if first:
                self._lost_before = lost
        if new:
            log.error("the registry: %s", reason)
        if first:
            _safely(
                self._alarm,
                f"the registry is not written: {reason}; seals are enforced as before",
            )

    def well(self, part: str, lost: int) -> int | None:
        """The number of events that were lost, when this ends the time of trouble."""
        with self._lock:
            if self._troubles.pop(part, None) is None or self._troubles:
                return None
            return lost - self._lost_before

    def tell(self, lost: int) -> None:
        log.warning("the registry is written again; %d events were lost", lost)
        _safely(self._recovered, lost)


def _safely(tell: Callable[[T], None], value: T) -> None:
    try:
        tell(value)
    except Exception:
        log.exception("nobody could be told of the registry's state")
