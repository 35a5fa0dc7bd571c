"""Jobs on file, so that a restart of the service forgets none.

A small file beside the control socket, in /run: jobs are of this boot, as seals are. It is written
when a job begins, before the answer, and when one ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import msgspec

from sealsvc.protocol.admin import JobInfo
from sealsvc.runtime import kept_file

log = logging.getLogger(__name__)

REMEMBERED = 64  # jobs; those that run are kept beyond it


class KeptJob(msgspec.Struct, frozen=True):
    """`uid`: the user who began it, where that one may look after it."""

    info: JobInfo
    uid: int | None = None


_DECODER = msgspec.json.Decoder(list[KeptJob])


class JobStore:
    """`run` runs a function that may block, in a worker thread."""

    def __init__(self, file: Path, run: Callable[..., Awaitable[None]]) -> None:
        self._file, self._run = file, run
        self._writing = asyncio.Lock()

    def load(self) -> list[KeptJob]:
        """The oldest first, as the service before left them. A file that cannot be read is begun
        anew."""
        try:
            return _DECODER.decode(self._file.read_bytes())
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the jobs in %s cannot be read: %s", self._file, error)
            return []

    async def save(self, jobs: Callable[[], Iterable[KeptJob]]) -> None:
        """One writer at a time, each with the jobs as they are when it begins."""
        async with self._writing:
            data = msgspec.json.encode(list(jobs()))
            await self._run(kept_file.replace, self._file, data, "jobs")
