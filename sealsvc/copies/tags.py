"""What copies need of those who keep tags of files: integrity/travel.py is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sealsvc.model import ByteRange

SEAL_TAG = "copy"  # of the seals that a copy takes for itself


class Tags(Protocol):
    async def begin(
        self, fds: Sequence[int], path: str, uid: int, asked: ByteRange, shift: int
    ) -> Any:
        """Before bytes `asked` of the source `fds[0]` are copied to `fds[1]` at `path`, `shift`
        bytes further. None when the source has no tags there."""

    async def finish(
        self, journey: Any, done: Sequence[ByteRange], *, whole: bool
    ) -> list[dict[str, Any]]:
        """After the copy of the ranges `done` of the source: what became of the tags."""

    async def check(self, device: int, inode: int) -> list[dict[str, Any]]:
        """Of a file whose blocks are moved: are its tags true?"""
