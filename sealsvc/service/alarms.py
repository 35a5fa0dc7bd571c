"""The list of alarms: what an operator should look at, until it is acknowledged.

An event reaches only those who listen. An alarm is kept: each distinct one with the number and the
times of its occurrences, also over a restart of the service (in a small file beside the control
socket, in /run, because alarms are of this boot; the registry keeps all of them). When the list is
full, acknowledged alarms are dropped first, then the oldest of the user whose seals have most: no
user can drive out the alarms about others, or about the service itself.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.core.paths import lies_below
from sealsvc.protocol.admin import AlarmInfo, AlarmPage, Alarms
from sealsvc.protocol.events import Event
from sealsvc.runtime import kept_file
from sealsvc.runtime.fair_map import FairMap

log = logging.getLogger(__name__)

MOST = 1000  # distinct alarms that are kept
_PAGE = 100  # alarms in one answer
_SHOWN = 500  # characters of a reason that are kept
_DECODER = msgspec.json.Decoder(list[AlarmInfo])


class AlarmList:
    """Keeps alarms in `file`. `run` runs a function that may block, in a worker thread.
    `owner_of(seal)` is the user that holds, or held, the seal of that id."""

    def __init__(
        self,
        file: Path,
        run: Callable[..., Awaitable[None]],
        owner_of: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._file, self._run, self._owner_of = file, run, owner_of
        self._alarms: FairMap[str, AlarmInfo] = FairMap(MOST)
        self._changed = False
        self.dropped = 0

    def load(self) -> None:
        """Read the alarms of an earlier service. If the file cannot be read, a warning is logged
        and the list starts empty."""
        try:
            found = _DECODER.decode(self._file.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the alarms in %s cannot be read: %s", self._file, error)
            return
        for alarm in found:
            self._alarms.put(alarm.id, alarm, self._owner(alarm.seal))

    def hear(self, event: Event) -> None:
        """Called with each event: adds those that are alarms."""
        if event.name not in ("alarm", "drift"):
            return
        reason = str(event.data.get("reason") or "the extent map of a sealed range changed")
        seal, path = event.seal or "", event.path or ""
        id = _id_of(event.name, seal, reason)
        alarm = self._alarms.pop(id)
        if self._alarms.full:
            self._drop_acknowledged()
        told = AlarmInfo(
            id=id,
            name=event.name,
            reason=reason[:_SHOWN],
            seal=seal,
            path=path,
            first=alarm.first if alarm else event.time,
            last=event.time,
            count=alarm.count + 1 if alarm else 1,
        )
        self.dropped += self._alarms.put(id, told, self._owner(seal)) is not None
        self._changed = True

    def _owner(self, seal: str) -> tuple[bool, int | None]:
        """Whose alarm it is. Those about no seal are the service's own. Those about seals that are
        not remembered (after a restart) have one owner together."""
        return bool(seal), self._owner_of(seal) if seal else None

    def _drop_acknowledged(self) -> None:
        """Make room: drop the oldest alarm that was acknowledged, if there is one."""
        seen = next((alarm for alarm in self._alarms.values() if alarm.acknowledged_by), None)
        if seen is not None:
            self._alarms.pop(seen.id)

    @property
    def open(self) -> int:
        """Number of alarms that nobody has acknowledged."""
        return sum(not alarm.acknowledged_by for alarm in self._alarms.values())

    def page(self, request: Alarms) -> AlarmPage:
        """The alarms that the request asks for, the newest first."""
        found = [a for a in self._alarms.newest() if _concerns(a, request.below)]
        if request.open:
            found = [alarm for alarm in found if not alarm.acknowledged_by]
        return AlarmPage(
            alarms=found[: min(request.limit, _PAGE)],
            total=len(found),
            open=sum(not alarm.acknowledged_by for alarm in found),
            dropped=self.dropped if request.below is None else 0,
        )

    def acknowledge(self, alarm: str, by: str, below: Iterable[str] | None) -> AlarmInfo:
        """Record that `by` has seen an alarm. If it occurs again, it is open again. Raises Refusal
        `no-such-alarm`."""
        found = self._alarms.get(alarm)
        if found is None or not _concerns(found, below):
            raise Refusal("no-such-alarm", f"there is no alarm {alarm}", {"alarm": alarm})
        if not found.acknowledged_by:
            found = msgspec.structs.replace(found, acknowledged_by=by, acknowledged_at=time.time())
            self._alarms.replace(alarm, found)
            self._changed = True
        return found

    async def save(self) -> None:
        """Write the file if the list has changed. Called periodically."""
        if not self._changed:
            return
        self._changed = False
        data = msgspec.json.encode(list(self._alarms.values()))
        await self._run(kept_file.replace, self._file, data, "alarms")


def _id_of(name: str, seal: str, reason: str) -> str:
    """The id of an alarm. Alarms that differ only in numbers (counts, pids, offsets) share one."""
    text = f"{name}\0{seal}\0{re.sub('[0-9]+', '#', reason)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _concerns(alarm: AlarmInfo, below: Iterable[str] | None) -> bool:
    return below is None or bool(alarm.path and lies_below(alarm.path, below))
