"""Very many seals of a block each, on few files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sealsvc.client import Client
from sealsvc.protocol.seals import Return

BLOCK = 4096  # bytes


@contextmanager
def many_seals(client: Client, paths: Sequence[Path], count: int, a_file: int) -> Iterator[None]:
    """`count` shared seals, `a_file` on each of `paths` in turn; returned after."""
    seals: list[str] = []
    try:
        for number in range(count):
            reply = client.grant(
                path=str(paths[number // a_file]), kind="shared",
                offset=number % a_file * BLOCK, length=BLOCK,
            )  # fmt: skip
            os.close(reply.fds[0])
            seals.append(reply.seal.id)
        yield
    finally:
        for seal in seals:
            client.call(Return, seal=seal)
