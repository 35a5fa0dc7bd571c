"""The event log. Watchers never call back into the grant path."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sealsvc.core.display import printable
from sealsvc.protocol import codec
from sealsvc.protocol.events import EVENTS, Event, EventPage

log = logging.getLogger(__name__)


class EventLog:
    """Numbers events, keeps the newest `history` of them, and calls the watchers with each. A
    watcher must not block and must not raise. `path_of(seal)` is the path of the file of a seal, by
    its id; None when the seal is not known."""

    def __init__(self, history: int, path_of: Callable[[str], str | None]) -> None:
        self._kept: deque[Event] = deque(maxlen=history)
        self._watchers: set[Callable[[Event], None]] = set()
        self.seq = 0
        # Names this run of the service: the numbers of events are valid in one run only.
        self.run = secrets.token_hex(4)
        self._path_of = path_of

    def publish(self, name: str, seal: str | None = None, /, **data: Any) -> None:
        """Append an event and call the watchers; an alarm or drift is also logged. Raises
        ValueError for a name that is not in EVENTS."""
        if name not in EVENTS:
            raise ValueError(f"event {name!r} is not in sealsvc.protocol.events.EVENTS")
        self.seq += 1
        path = self._path_of(seal) if seal else None
        event = Event(seq=self.seq, time=time.time(), name=name, seal=seal, path=path, data=data)
        self._kept.append(event)
        if name in ("alarm", "drift"):
            fields = {"SEALSVC_SEAL": seal or "", "SEALSVC_EVENT": name}
            about = f" of seal {seal} on {printable(path or '?')}" if seal else ""
            log.error("%s%s: %s", name, about, printable(_sentence(data)), extra={"fields": fields})
        for watcher in tuple(self._watchers):
            watcher(event)

    def after(self, seq: int, count: int) -> tuple[list[Event], int]:
        """The first `count` events after number `seq`, the oldest first, and how many events after
        `seq` are no longer kept. `seq` must not be greater than `self.seq`."""
        fresh = self.seq - seq
        lost = max(0, fresh - len(self._kept))
        first = len(self._kept) - (fresh - lost)
        end = min(len(self._kept), first + count)
        return [self._kept[i] for i in range(first, end)], lost

    def page(self, since: int, count: int, size: int) -> EventPage:
        """At most `count` events after number `since`, as many as fit into `size` bytes when they
        are encoded, but at least one if there is any."""
        beyond = since > self.seq
        kept, lost = ([], 0) if beyond else self.after(since, count)
        sizes = itertools.accumulate(len(codec.encoded(event)) + 1 for event in kept)
        # Lazily, so that no event is encoded once the page is known to be full.
        fitting = sum(1 for _ in itertools.takewhile(lambda end: end <= size, sizes))
        gap = beyond or lost > 0
        return EventPage(events=kept[: max(1, fitting)], seq=self.seq, gap=gap, run=self.run)

    def watch(self, watcher: Callable[[Event], None]) -> None:
        self._watchers.add(watcher)

    def unwatch(self, watcher: Callable[[Event], None]) -> None:
        self._watchers.discard(watcher)


def _sentence(data: dict[str, Any]) -> str:
    """The text that is logged: the reason of an alarm, the place of a drift."""
    if (drift := data.get("drift")) is not None:
        return f"at offset {drift.logical} the map had {drift.expected}, and has {drift.found}"
    return str(data.get("reason", data))
