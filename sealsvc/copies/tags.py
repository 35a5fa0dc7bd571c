"""What copies need of those who keep tags of files: integrity/travel.py is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sealsvc.core.model import ByteRange, FileId
from sealsvc.runtime.limits import Asked

SEAL_TAG = "copy"  # of the seals that a copy takes for itself


@dataclass(frozen=True, slots=True)
class CopiedRange:
    """Bytes `asked` of file `source` are to be copied to `there`, `shift` bytes further."""

    source: FileId
    there: FileId
    asked: ByteRange
    shift: int


class Tags(Protocol):
    async def begin(self, way: CopiedRange, path: str, asker: Asked) -> Any:
        """Before anything is copied to the file at `path`, for `asker`, to whose share new
        attachments count. None when the source has no tags there."""

    async def finish(
        self, journey: Any, done: Sequence[ByteRange], *, whole: bool
    ) -> list[dict[str, Any]]:
        """After the copy of the ranges `done` of the source: what became of the tags."""

    async def check(self, device: int, inode: int) -> list[dict[str, Any]]:
        """Of a file whose blocks are moved: are its tags true?"""
