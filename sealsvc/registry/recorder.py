"""What is recorded, as the service tells it: each of its events becomes an Entry.

What an event tells in full comes by `watch`; what needs more than the event has comes by a method
of its own. Each entry is of a user (None: of the service itself) and is vital or not: grants, ends
and the audit of who asked are; conflicts and refusals, of which a user can make very many, are not.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import Drift
from sealsvc.linux.processes import Peer
from sealsvc.protocol.events import Event
from sealsvc.protocol.seals import SealInfo
from sealsvc.registry.entries import Entry
from sealsvc.runtime.config import Config

# Of these the event has not all that is recorded: granted(), refused(), drifted() and present().
_BY_METHOD = frozenset({"granted", "refused", "drift", "reclaimed", "gap"})
_VITAL = frozenset({"state", "alarm", "policy", "integrity"})


class Recorder(abc.ABC):
    """`owner_of(seal)` is the user that holds, or held, the seal of that id."""

    def __init__(self, owner_of: Callable[[str], int | None]) -> None:
        self.boot = _boot_id()
        self._owner_of = owner_of

    @abc.abstractmethod
    def put(self, entry: Entry, user: int | None, *, vital: bool) -> None:
        """Never blocks, does no I/O, and does not fail."""

    def watch(self, event: Event) -> None:
        """For EventLog.watch."""
        if event.name in _BY_METHOD:
            return
        operation = event.data.get("operation")
        if event.name in ("conflict", "conflict-ended") and operation is not None:
            user = operation.uid
        else:
            user = self._owner_of(event.seal) if event.seal else None
        entry = Entry(event.time, event.name, event.seal, event.data)
        self.put(entry, user, vital=event.name in _VITAL)

    def started(self, config: Config, enforcers: dict[str, str]) -> None:
        """`enforcers` gives for each why it is not available, or nothing."""
        data = {"boot": self.boot, "config": config, "enforcers": enforcers}
        self.put(Entry(time.time(), "started", None, data), None, vital=True)

    def granted(self, seal: SealInfo, map: ExtentMap, asker: Peer, trace: str = "") -> None:
        """`map` is the one recorded at grant, which nobody changes any more."""
        data = {"seal": seal, **_asker(asker, trace)}
        entry = Entry(seal.granted_at, "granted", seal.id, data, (seal,), ((seal.id, map),))
        self.put(entry, asker.uid, vital=True)

    def present(self, seals: Iterable[tuple[SealInfo, ExtentMap]]) -> None:
        """These are all the seals that live now: those that were reclaimed, at every start (none
        is an answer, too), and all there are after the registry recovered. What else was recorded
        as living has ended unseen."""
        self.put(self.present_part(list(seals), 0, last=True), None, vital=True)

    def present_part(
        self, live: list[tuple[SealInfo, ExtentMap]], number: int, *, last: bool
    ) -> Entry:
        """Some of them: the parts of one telling are numbered from 0 on."""
        return Entry(
            time.time(),
            "present",
            None,
            {"seals": len(live), "boot": self.boot, "part": number, "last": last},
            tuple(seal for seal, _ in live),
            tuple((seal.id, map) for seal, map in live),
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
        self.put(Entry(time.time(), "refused", None, data), asker.uid, vital=False)

    def drifted(self, drift: Drift, recorded: ExtentMap, found: ExtentMap) -> None:
        """Both maps are kept as evidence."""
        maps = ((drift.seal, recorded), (drift.seal, found))
        entry = Entry(time.time(), "drift", drift.seal, {"drift": drift}, (), maps)
        self.put(entry, None, vital=True)

    def asked(self, asker: Peer, operation: str, seal: str | None = None, **data: Any) -> None:
        """Somebody asked for what changes seals: a return, a recall. For the audit trail."""
        told = {"operation": operation, **_asker(asker), **data}
        self.put(Entry(time.time(), "asked", seal, told), asker.uid, vital=True)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _asker(peer: Peer, trace: str = "") -> dict[str, Any]:
    said = {"asker": {"pid": peer.pid, "uid": peer.uid}}
    return {**said, "trace": trace} if trace else said
