"""Whether the registry can be written: one alarm when it cannot, one word when it can again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

_REASONS = 8  # of one time of trouble that are told

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Over:
    """A time of trouble that is over: how many events were lost in it, when it began (Unix time),
    and what failed."""

    lost: int
    since: float
    reasons: tuple[str, ...]

    def told(self) -> dict[str, Any]:
        """As the audit trail has it."""
        return {
            "lost": self.lost,
            "from": self.since,
            "to": time.time(),
            "reasons": list(self.reasons),
        }


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
        self._well_since = self._since = 0.0
        self._reasons: list[str] = []  # of this time of trouble
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
                self._lost_before, self._since, self._reasons = lost, time.time(), []
            if reason not in self._reasons and len(self._reasons) < _REASONS:
                self._reasons.append(reason)
        if first:
            log.error("the registry is not written: %s", reason)
            _safely(
                self._alarm,
                f"the registry is not written: {reason}; seals are enforced as before",
            )
        elif new:
            log.warning("the registry: %s", reason)

    def note(self, reason: str) -> None:
        """Add a reason to those of the trouble that lasts; ignored when there is none."""
        with self._lock:
            if self._troubled and reason not in self._reasons:
                self._reasons.append(reason)

    def well(self, part: str) -> None:
        with self._lock:
            if self._failing.pop(part, None) is not None and not self._failing:
                self._well_since = time.monotonic()

    def over(self, lost: int) -> Over | None:
        """Once, when a time of trouble is over. `lost` is how many events were lost until now."""
        with self._lock:
            quiet = not self._failing and time.monotonic() - self._well_since >= self._quiet
            if not (self._troubled and quiet):
                return None
            self._troubled = False
            return Over(lost - self._lost_before, self._since, tuple(self._reasons))

    def tell(self, lost: int) -> None:
        log.warning("the registry is written again; %d events were lost", lost)
        _safely(self._recovered, lost)


def _safely(tell: Callable[[T], None], value: T) -> None:
    try:
        tell(value)
    except Exception:
        log.exception("nobody could be told of the registry's state")
