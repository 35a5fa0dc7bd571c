"""Entries on their way to the registry's process, and whose there is room for.

The room is bounded, and no user may fill it: half is for what is vital (grants, ends, who asked),
half for the rest, and of either a user may have at most as many entries as are left free for
others. So one user that floods takes half of one half, two a third each, and there is always room
left for one more user. What there is no room for is counted, and the audit trail is told: how
many, from when to when, of which kinds and users.

Entries are numbered. They stay here until the process has settled them: one that dies before is
followed by another, which is sent them again.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from sealsvc.registry.entries import Entry

ROOM = 20_000  # entries
BYTES_OF_MAPS = 64 << 20  # beyond it entries are kept without their maps
_NAMED = 16  # users in one account of what was lost


@dataclass(slots=True)
class _Half:
    room: int
    count: int = 0
    users: Counter[int | None] = field(default_factory=Counter)

    def admits(self, user: int | None) -> bool:
        free = self.room - self.count
        return free > 0 and (user is None or self.users[user] < free)

    def add(self, user: int | None) -> None:
        self.count += 1
        self.users[user] += 1

    def remove(self, user: int | None) -> None:
        self.count -= 1
        self.users[user] -= 1
        if not self.users[user]:
            del self.users[user]


@dataclass(slots=True)
class _Gap:
    since: float
    until: float = 0.0
    lost: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    users: Counter[str] = field(default_factory=Counter)

    def told(self) -> dict[str, Any]:
        return {
            "lost": self.lost,
            "from": self.since,
            "to": self.until,
            "kinds": dict(self.kinds),
            "users": dict(self.users.most_common(_NAMED)),
        }


@dataclass(frozen=True, slots=True)
class _Kept:
    entry: Entry
    user: int | None
    vital: bool
    size: int


class Backlog:
    """For one thread."""

    def __init__(self, room: int = ROOM) -> None:
        self.lost = 0  # entries that there was no room for, in this run
        self.gap: _Gap | None = None
        self._halves = {vital: _Half(room // 2) for vital in (False, True)}
        self._waiting: deque[_Kept] = deque()
        self._sent: deque[_Kept] = deque()
        self._number = self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    @property
    def waiting(self) -> int:
        """Those that were not sent yet."""
        return len(self._waiting)

    @property
    def sent(self) -> int:
        """Those that were sent and are not settled."""
        return len(self._sent)

    def put(self, entry: Entry, user: int | None, *, vital: bool) -> bool:
        """False when there is no room for it."""
        half = self._halves[vital]
        if not half.admits(user):
            self._lose(entry, user)
            return False
        size = entry.map_bytes
        if size and self._bytes + size > BYTES_OF_MAPS and len(self):
            entry, size = entry._replace(maps=()), 0
        self._number += 1
        self._bytes += size
        half.add(user)
        self._waiting.append(_Kept(entry._replace(number=self._number), user, vital, size))
        return True

    def tell_gap(self) -> bool:
        """Have the trail told of what was lost, once there is room again."""
        if self.gap is None or any(half.count > half.room // 2 for half in self._halves.values()):
            return False
        gap, self.gap = self.gap, None
        self.put(Entry(time.time(), "lost", None, gap.told()), None, vital=True)
        return True

    def take(self) -> Entry | None:
        """The next to be sent."""
        if not self._waiting:
            return None
        kept = self._waiting.popleft()
        self._sent.append(kept)
        return kept.entry

    def settle(self, number: int) -> None:
        """Those up to `number` are written, or given up by who writes."""
        while self._sent and self._sent[0].entry.number <= number:
            kept = self._sent.popleft()
            self._bytes -= kept.size
            self._halves[kept.vital].remove(kept.user)

    def send_again(self) -> None:
        """Whoever was sent them has died."""
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()

    def _lose(self, entry: Entry, user: int | None) -> None:
        self.lost += 1
        if self.gap is None:
            self.gap = _Gap(entry.time)
        gap = self.gap
        gap.lost, gap.until = gap.lost + 1, max(gap.until, entry.time)
        gap.kinds[entry.kind] += 1
        name = "service" if user is None else str(user)
        if name in gap.users or len(gap.users) < 4 * _NAMED:
            gap.users[name] += 1
