"""The queue of errors: what was found wrong, for whoever waits for it.

On disk before a block's state says that it was found, so that no crash loses one; the registry's
chain has each as well (the event `integrity`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from sealsvc.protocol import codec
from sealsvc.protocol.integrity import PiError, PiErrorPage
from sealsvc.runtime.fair_map import FairMap

T = TypeVar("T", bound=msgspec.Struct)

KEPT = 4096  # errors, of which the attachment that has most loses its own oldest
_ROOM = 48 << 10  # bytes of a message's 64 KiB
_FILE_BYTES = 8 << 20  # of one file; there are two


def fitting(items: Sequence[T]) -> list[T]:
    """As many of the first as a message has room for."""
    sizes = itertools.accumulate(len(codec.encoded(item)) + 1 for item in items)
    return [item for item, size in zip(items, sizes, strict=False) if size <= _ROOM]


class ErrorLog:
    """`load` and `write` block, and are called in one thread; the others on the event loop."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "errors.jsonl"
        self._kept: FairMap[int, PiError] = FairMap(KEPT)
        self._arrived = asyncio.Event()
        self.seq = 0
        self.counts: dict[str, int] = {}

    def load(self) -> list[PiError]:
        """What an earlier run has left. A line that was cut off is no error."""
        found = list[PiError]()
        for path in (self._path.with_suffix(".1"), self._path):
            lines = path.read_bytes().splitlines() if path.exists() else []
            for line in lines:
                try:
                    found.append(msgspec.json.decode(line, type=PiError))
                except msgspec.DecodeError:
                    continue
        return found

    def resume(self, found: Sequence[PiError]) -> None:
        for error in found:
            self._keep(error)
        self.seq = max((error.seq for error in found), default=0)

    def numbered(self, errors: Sequence[PiError]) -> list[PiError]:
        made = []
        for error in errors:
            self.seq += 1
            made.append(msgspec.structs.replace(error, seq=self.seq))
        return made

    def write(self, errors: Sequence[PiError]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)  # there may be no tags yet
        if self._path.exists() and self._path.stat().st_size > _FILE_BYTES:
            self._path.rename(self._path.with_suffix(".1"))
        with self._path.open("ab") as file:
            # What was cut off before does not spoil the next line.
            file.write(b"".join(b"\n" + msgspec.json.encode(error) for error in errors) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def tell(self, errors: Sequence[PiError]) -> None:
        for error in errors:
            self._keep(error)
            self.counts[error.kind] = self.counts.get(error.kind, 0) + 1
        self._arrived.set()
        self._arrived = asyncio.Event()

    def _keep(self, error: PiError) -> None:
        self._kept.put(error.seq, error, error.attachment)

    async def page(self, after: int, limit: int, wait: float) -> PiErrorPage:
        """Those after a number; waits for one when there is none."""
        deadline = asyncio.get_running_loop().time() + wait
        while not (found := [error for error in self._kept.values() if error.seq > after]):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return PiErrorPage(errors=[], next=min(after, self.seq))
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                continue
        shown = fitting(found[:limit])
        # Each number in between is shown, or was forgotten.
        lost = max(0, shown[-1].seq - after - len(shown))
        return PiErrorPage(errors=shown, next=shown[-1].seq, lost=lost)
