"""Integrity in the service: what is asked of it, and what it does when seals begin and end."""

from __future__ import annotations

from pathlib import Path

from sealsvc.integrity.attachments import Attachments
from sealsvc.integrity.filesystem_errors import FilesystemErrors
from sealsvc.integrity.requests import IntegrityRequests
from sealsvc.integrity.seal_changes import SealChanges
from sealsvc.lifecycle.grants import Grants
from sealsvc.lifecycle.seals import Seal
from sealsvc.runtime.config import IntegritySection
from sealsvc.runtime.events import EventLog
from sealsvc.runtime.tasks import Tasks


class Integrity:
    """`directory` is where attachments are kept. `requests` answers what is asked, `seals` is told
    when seals begin and end."""

    def __init__(
        self,
        grants: Grants,
        events: EventLog,
        tasks: Tasks,
        section: IntegritySection,
        directory: Path,
    ) -> None:
        self._events = events
        self.attachments = Attachments(grants, events, section, directory)
        self.requests = IntegrityRequests(grants, tasks, section, self.attachments)
        self.seals = SealChanges(grants, events, tasks, section, self.attachments)
        self.errors = self.attachments.errors
        self.filesystems = FilesystemErrors(
            grants, events, tasks, self.attachments, monitor=section.health_monitor
        )

    async def start(self) -> None:
        """Go on with what an earlier run has left. Blocks that were open when it was killed stay so
        only where their seal was taken over: else a writer may have been cut off. Raises
        OSError."""
        self.filesystems.start()
        await self.requests.load_profiles()
        await self.attachments.load()
        self._events.watch(self.seals.heard)
        await self.filesystems.listen()

    async def granted(self, seal: Seal) -> None:
        """Before the holder has its descriptor."""
        self.filesystems.watch_soon(seal)
        await self.seals.granted(seal)

    async def stop(self) -> None:
        """At the service's end."""
        await self.filesystems.stop()

    def counters(self) -> dict[str, int]:
        """How many errors of each kind were found."""
        return dict(self.errors.counts)
