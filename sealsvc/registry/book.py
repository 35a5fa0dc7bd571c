"""The registry on disk: the writer's thread, and the queries that read what it wrote.

This is what the registry's process (server.py) has. Nothing of it runs in the service.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sealsvc.registry.archive import Archive
from sealsvc.registry.entries import Entry
from sealsvc.registry.queries import Queries
from sealsvc.registry.recorder import Recorder
from sealsvc.registry.retention import Retention
from sealsvc.registry.writer import Writer
from sealsvc.runtime.config import RegistrySection

_QUEUE = 20_000
_RETRY = 5.0  # seconds


class Book(Recorder):
    """Every method but `queries` and the counters is for one thread; none blocks, does I/O or
    raises. `alarm(reason)` is called once when the registry can no longer be written,
    `recovered(lost)` when it can again, with the number of events lost meanwhile, `settled(number)`
    when the entry of that number, and all before it, are written or given up: each on any thread.
    Whoever hears `recovered` is asked to call `present` again."""

    def __init__(
        self,
        section: RegistrySection,
        alarm: Callable[[str], None],
        recovered: Callable[[int], None],
        *,
        settled: Callable[[int], None] = lambda _: None,
        run: str = "",
        queue: int = _QUEUE,
        retry: float = _RETRY,
    ) -> None:
        super().__init__(lambda _: None)  # entries come with their user
        directory = Path(section.directory)
        archive = Archive(directory / "maps")
        retention = Retention(directory, archive, section.retention_days, section.max_bytes, alarm)
        self._writer = Writer(
            directory, self.boot, run, archive, retention, alarm, recovered, settled, queue, retry
        )
        self.queries = Queries(directory, archive, self._writer.suspect)

    def start(self) -> None:
        self._writer.start()

    def close(self, timeout: float = 5.0) -> bool:
        """Write what waits, for at most `timeout` seconds. False when the disk hangs."""
        return self._writer.close(timeout)

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

    def put(self, entry: Entry, user: int | None = None, *, vital: bool = True) -> None:  # noqa: ARG002
        """Whose entries there is room for was decided before they came here (backlog.py)."""
        self._writer.put(entry)
