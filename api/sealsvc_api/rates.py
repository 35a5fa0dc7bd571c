"""How often each principal may ask, and the header fields that tell it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sealsvc.core.errors import Refusal

_BURST = 2.0  # seconds' worth of requests at once
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Rate:
    """draft-ietf-httpapi-ratelimit-headers: the quota, what is left of it, and in how many seconds
    all of it is there again."""

    quota: int
    left: int
    reset: int

    def headers(self) -> list[tuple[bytes, bytes]]:
        window = int(_BURST)
        return [
            (b"ratelimit-policy", b'"principal";q=%d;w=%d' % (self.quota, window)),
            (b"ratelimit", b'"principal";r=%d;t=%d' % (self.left, self.reset)),
        ]


class Rates:
    """A token bucket for each principal."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Requests left, and when they were counted: who asked last comes last.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, rate: float) -> Rate:
        """Raises limit-reached, with the seconds until the next may come."""
        now = self._clock()
        quota = max(1.0, rate * _BURST)
        left, since = self._buckets.get(name, (quota, now))
        left = min(quota, left + (now - since) * rate)
        if left < 1:
            message = f"{name} asks more than {rate:g} times a second"
            raise Refusal("limit-reached", message, {"rate": rate}, retry_after=(1 - left) / rate)
        left -= 1
        self._buckets[name] = (left, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > _MOST:  # the one that has refilled the longest
            self._buckets.popitem(last=False)
        return Rate(int(quota), int(left), int((quota - left) / rate) + 1)
