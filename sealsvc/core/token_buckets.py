"""Token buckets: how often each of many may do something."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Empty(Exception):
    """There is no token. `wait` is the seconds until there is one."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"no token for {wait:.3f} s")
        self.wait = wait


class TokenBuckets(Generic[K]):
    """A bucket for each key. `clock` tells seconds. At most `most` buckets are kept; beyond that
    the one that has had most time to refill is dropped, as if it were full."""

    def __init__(self, clock: Callable[[], float], most: int) -> None:
        self._clock, self._most = clock, most
        # By key: tokens, and when they were counted. The key that took one last is at the end.
        self._buckets: OrderedDict[K, tuple[float, float]] = OrderedDict()

    def take(self, key: K, rate: float, size: float) -> float:
        """Take a token from a bucket of `size` tokens that is refilled with `rate` tokens per
        second. Returns the tokens that are left. Raises Empty."""
        now = self._clock()
        left, since = self._buckets.get(key, (size, now))
        left = min(size, left + (now - since) * rate)
        if left < 1:
            raise Empty((1 - left) / rate)
        self._buckets[key] = (left - 1, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return left - 1
