"""The registry: what became of every seal, kept on disk for those who ask later.

Nothing that grants, enforces or ends a seal reads it or waits for it. What happened is queued by
the event loop and written by one thread; when that cannot, seals are kept as before, and what was
not recorded is counted. What an event tells in full comes by `watch`; what needs more than the
event has comes by a method of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sealsvc.config import Config, RegistrySection
from sealsvc.errors import Refusal
from sealsvc.extents import ExtentMap
from sealsvc.messages import Drift, Event, SealInfo
from sealsvc.processes import Peer
from sealsvc.registry.archive import Archive
from sealsvc.registry.entries import Entry
from sealsvc.registry.queries import Queries
from sealsvc.registry.retention import Retention
from sealsvc.registry.writer import Writer

_QUEUE = 20_000
_RETRY = 5.0  # seconds

# Of these the event has not all that is recorded: granted(), refused(), drifted() and present().
_BY_METHOD = frozenset({"granted", "refused", "drift", "reclaimed", "gap"})


class Registry:
    """Every method but `queries` and the counters is for the event loop's thread; none blocks, does
    I/O or raises. `alarm(reason)` is called once when the registry can no longer be written,
    `recovered(lost)` when it can again, with the number of events lost meanwhile: either on any
    thread. Whoever hears `recovered` is asked to call `present` again."""

    def __init__(
        self,
        section: RegistrySection,
        alarm: Callable[[str], None],
        recovered: Callable[[int], None],
        *,
        queue: int = _QUEUE,
        retry: float = _RETRY,
    ) -> None:
        directory = Path(section.directory)
        archive = Archive(directory / "maps")
        retention = Retention(directory, archive, section.retention_days, section.max_bytes, alarm)
        self.boot = _boot_id()
        self.enabled = section.enabled
        self.queries = Queries(directory, archive, enabled=section.enabled)
        self._writer = Writer(
            directory, self.boot, archive, retention, alarm, recovered, queue, retry
        )

    def start(self) -> None:
        if self.enabled:
            self._writer.start()

    def close(self, timeout: float = 5.0) -> bool:
        """Write what waits, for at most `timeout` seconds. False when the disk hangs."""
        return not self.enabled or self._writer.close(timeout)

    @property
    def lag(self) -> int:
        """Events that wait to be written."""
        return self._writer.lag

    @property
    def lost(self) -> int:
        """Events of this run that were not recorded, and never will be."""
        return self._writer.lost

    @property
    def troubles(self) -> list[str]:
        """Why it is not written right now; empty when it is."""
        return self._writer.troubles

    # What happened

    def watch(self, event: Event) -> None:
        """For EventLog.watch."""
        if event.name not in _BY_METHOD:
            self._put(Entry(event.time, event.name, event.seal, event.data))

    def started(self, config: Config, enforcers: dict[str, str]) -> None:
        """`enforcers` gives for each why it is not available, or nothing."""
        data = {"boot": self.boot, "config": config, "enforcers": enforcers}
        self._put(Entry(time.time(), "started", None, data))

    def granted(self, seal: SealInfo, map: ExtentMap, asker: Peer, trace: str = "") -> None:
        """`map` is the one recorded at grant, which nobody changes any more."""
        data = {"seal": seal, **_asker(asker, trace)}
        self._put(
            Entry(seal.granted_at, "granted", seal.id, data, (seal,), ((seal.id, map),)),
        )

    def present(self, seals: Iterable[tuple[SealInfo, ExtentMap]]) -> None:
        """These are all the seals that live now: those that were reclaimed, at every start (none
        is an answer, too), and all there are after the registry recovered. What else was recorded
        as living has ended unseen."""
        live = list(seals)
        self._put(
            Entry(
                time.time(),
                "present",
                None,
                {"seals": len(live), "boot": self.boot},
                tuple(seal for seal, _ in live),
                tuple((seal.id, map) for seal, map in live),
            )
        )

    def refused(self, refusal: Refusal, path: str | None, asker: Peer, trace: str = "") -> None:
        """A grant was refused."""
        data = {
            "code": refusal.code,
            "message": refusal.message,
            "details": refusal.details,
            "path": path,
            **_asker(asker, trace),
        }
        self._put(Entry(time.time(), "refused", None, data))

    def drifted(self, drift: Drift, recorded: ExtentMap, found: ExtentMap) -> None:
        """Both maps are kept as evidence."""
        maps = ((drift.seal, recorded), (drift.seal, found))
        self._put(Entry(time.time(), "drift", drift.seal, {"drift": drift}, (), maps))

    def asked(self, asker: Peer, operation: str, seal: str | None = None, **data: Any) -> None:
        """Somebody asked for what changes seals: a return, a recall. For the audit trail."""
        told = {"operation": operation, **_asker(asker), **data}
        self._put(Entry(time.time(), "asked", seal, told))

    def _put(self, entry: Entry) -> None:
        if self.enabled:
            self._writer.put(entry)


def _asker(peer: Peer, trace: str = "") -> dict[str, Any]:
    said = {"asker": {"pid": peer.pid, "uid": peer.uid}}
    return {**said, "trace": trace} if trace else said


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
