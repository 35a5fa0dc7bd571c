"""How often each principal may ask, and the header fields that tell it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from sealsvc.core.errors import Refusal
from sealsvc.core.token_buckets import Empty, TokenBuckets

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
    """Limits the requests of each principal. `clock` tells seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets: TokenBuckets[str] = TokenBuckets(clock, _MOST)

    def take(self, name: str, rate: float) -> Rate:
        """Count a request of a principal that may send `rate` per second. Raises Refusal
        `limit-reached`, with the seconds until the next may come."""
        quota = max(1.0, rate * _BURST)
        try:
            left = self._buckets.take(name, rate, quota)
        except Empty as empty:
            message = f"{name} asks more than {rate:g} times a second"
            raise Refusal("limit-reached", message, {"rate": rate}, empty.wait) from None
        return Rate(int(quota), int(left), int((quota - left) / rate) + 1)
