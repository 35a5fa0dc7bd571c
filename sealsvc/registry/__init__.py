"""The registry: what became of every seal, kept on disk for those who ask later.

Nothing that grants, enforces or ends a seal reads it or waits for it. What happened is queued by
the event loop and sent to a process of its own, which alone touches the registry's disk; when that
cannot be written, seals are kept as before, and what was not recorded is counted.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import ParamSpec, TypeVar

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import ExtentMap
from sealsvc.protocol.seals import SealInfo
from sealsvc.registry.backlog import Backlog
from sealsvc.registry.entries import Entry
from sealsvc.registry.link import Link, Query
from sealsvc.registry.recorder import Recorder
from sealsvc.runtime.config import RegistrySection
from sealsvc.runtime.limits import Asked

T = TypeVar("T")
P = ParamSpec("P")

_PART = 200  # seals told in one turn of the event loop


class Registry(Recorder):
    """For the event loop alone; nothing blocks or does I/O. `alarm(reason)` is called once when the
    registry can no longer be written, `recovered(lost)` when it can again, with the number of
    events lost meanwhile. Whoever hears `recovered` is asked to call `present` again.
    `owner_of(seal)` is the uid of the holder of a live or ended seal, by its id."""

    def __init__(
        self,
        section: RegistrySection,
        alarm: Callable[[str], None],
        recovered: Callable[[int], None],
        owner_of: Callable[[str], int | None],
    ) -> None:
        super().__init__(owner_of)
        self.enabled = section.enabled
        self._backlog = Backlog()
        self._link = Link(section, self._backlog, alarm, recovered, run=secrets.token_hex(8))
        self._telling: Iterator[tuple[SealInfo, ExtentMap]] = iter(())

    def start(self) -> None:
        if self.enabled:
            self._link.start()

    async def close(self, timeout: float = 5.0) -> bool:
        """Have what waits written, for at most `timeout` seconds. False when something is left."""
        return not self.enabled or await self._link.close(timeout)

    @property
    def lag(self) -> int:
        """Events that wait to be written."""
        return len(self._backlog)

    @property
    def lost(self) -> int:
        """Events of this run that were not recorded, and never will be."""
        return self._link.lost

    @property
    def troubles(self) -> list[str]:
        """Why it is not written right now; empty when it is."""
        return self._link.troubles

    @property
    def restarts(self) -> int:
        """How often its process had to be started again."""
        return max(0, self._link.restarts)

    async def ask(self, user: Asked, query: Query[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What the process answers when this method of Queries is called. Raises Refusal."""
        if not self.enabled:
            raise Refusal("unknown-operation", "the registry is off: see registry.enabled")
        return await self._link.ask(user, query, *args, **options)

    def put(self, entry: Entry, user: int | None, *, vital: bool) -> None:
        if not self.enabled:
            return
        if self._backlog.put(entry, user, vital=vital):
            self._link.wake()
        else:
            self._link.full()

    def present(self, seals: Iterable[tuple[SealInfo, ExtentMap]]) -> None:
        """Some in each turn of the event loop: they are taken from `seals` only then, as they are
        then. Another telling takes the place of one that is under way."""
        self._telling = iter(seals)
        self._tell_more(self._telling, 0)

    def _tell_more(self, seals: Iterator[tuple[SealInfo, ExtentMap]], number: int) -> None:
        if seals is not self._telling:
            return
        part = list(islice(seals, _PART))
        last = len(part) < _PART
        self.put(self.present_part(part, number, last=last), None, vital=True)
        if not last:
            asyncio.get_running_loop().call_soon(self._tell_more, seals, number + 1)
