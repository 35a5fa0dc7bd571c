"""A bounded memory that users share: whoever has most of it loses its own oldest."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FairMap(Generic[K, V]):
    """A mapping of at most `most` entries, in the order in which they were put. Each belongs to an
    owner. Where there is no room for one more, the owner with the most entries loses its oldest, so
    that an owner that floods the map evicts nobody else's."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[K, tuple[Hashable, V]] = {}
        self._keys: dict[Hashable, dict[K, None]] = {}  # of each owner, the oldest first

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def full(self) -> bool:
        return len(self._entries) >= self._most

    def put(self, key: K, value: V, owner: Hashable) -> V | None:
        """Add an entry as the newest, in place of any with this key. Returns what another entry
        that was dropped for it had, if one was."""
        self.pop(key)
        self._entries[key] = owner, value
        self._keys.setdefault(owner, {})[key] = None
        if len(self._entries) <= self._most:
            return None
        flooding = max(self._keys.values(), key=len)
        return self.pop(next(iter(flooding)))

    def replace(self, key: K, value: V) -> None:
        """Change the value of an entry that is there; its owner and place stay."""
        owner, _ = self._entries[key]
        self._entries[key] = owner, value

    def get(self, key: K) -> V | None:
        found = self._entries.get(key)
        return found[1] if found else None

    def pop(self, key: K) -> V | None:
        """Remove an entry; what it had, None when there is none."""
        found = self._entries.pop(key, None)
        if found is None:
            return None
        owner, value = found
        mine = self._keys[owner]
        del mine[key]
        if not mine:
            del self._keys[owner]
        return value

    def values(self) -> Iterator[V]:
        """The oldest first."""
        return (value for _, value in self._entries.values())

    def newest(self) -> Iterator[V]:
        """The newest first."""
        return (value for _, value in reversed(self._entries.values()))
