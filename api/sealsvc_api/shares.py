"""How much of something countable each principal may have at a time."""

from __future__ import annotations

from collections import Counter

from sealsvc.core.errors import Refusal
from sealsvc_api.access import Action, Caller


class Shares:
    """At most `most` in all and `each` for one principal. An eighth is reserved for those who may
    recall seals: an operator is served whatever the others do."""

    def __init__(self, what: str, most: int, each: int, option: str = "") -> None:
        """`what` is named in refusals, with the command line's `option` that sets `most`."""
        self._what, self._most, self._each = what, most, min(each, most)
        self._option = f" ({option})" if option else ""
        self._taken: Counter[str] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def take(self, caller: Caller) -> None:
        """Raises Refusal `limit-reached`. Every one that is taken must be given back."""
        reserve = 0 if caller.may(Action.RECALL) else self._most // 8
        if self._count >= self._most - reserve:
            message = f"there are {self._count} {self._what}, as many as may be{self._option}"
            self._refuse(message, self._most - reserve)
        if self._taken[caller.name] >= self._each:
            self._refuse(f"{caller.name} has {self._each} {self._what}, its share", self._each)
        self._taken[caller.name] += 1
        self._count += 1

    def give_back(self, caller: Caller) -> None:
        self._count -= 1
        self._taken[caller.name] -= 1
        if not self._taken[caller.name]:
            del self._taken[caller.name]

    def _refuse(self, message: str, limit: int) -> None:
        raise Refusal("limit-reached", message, {"limit": limit}, retry_after=5.0)
