"""How many attachments each user, and each principal of the REST API, may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from sealsvc.core.errors import Refusal
from sealsvc.lifecycle.policy import Policy
from sealsvc.runtime.limits import Asked, leaves_as_many, name_of

MOST = 1000  # attachments altogether
MOST_EACH = 200  # of one who asks


class Shares:
    """Attachments are counted to who asked for them. An operator who asks for nobody else is bound
    by MOST alone. `askers` tells who asked for each attachment that there is."""

    def __init__(self, policy: Policy, askers: Callable[[], Iterable[Asked]]) -> None:
        self._policy, self._askers = policy, askers
        self._making: Counter[Asked] = Counter()

    @contextmanager
    def one_more(self, asker: Asked) -> Iterator[None]:
        """A context in which `asker` makes one attachment: it counts from the beginning, because
        making one takes long. Raises Refusal `limit-reached`."""
        self._refuse_more(asker)
        self._making[asker] += 1
        try:
            yield
        finally:
            self._making[asker] -= 1
            if not self._making[asker]:
                del self._making[asker]

    def _refuse_more(self, asker: Asked) -> None:
        have = Counter(self._askers()) + self._making
        mine, taken = have[asker], have.total()
        uid, principal = asker
        alone = uid in self._policy.section.operators and not principal
        most = MOST if alone else MOST_EACH
        if taken < MOST and mine < most and (alone or leaves_as_many(mine, taken, MOST)):
            return
        message = (
            f"there are {taken} attachments of {MOST}; {name_of(asker)} has {mine},"
            f" and may have {most} at most, and no more than are left for others: detach some"
        )
        raise Refusal("limit-reached", message, {"limit": "attachments"}, retry_after=5.0)
