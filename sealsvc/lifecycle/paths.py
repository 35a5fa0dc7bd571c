"""The one place where a path that a client sent becomes a file.

A path is text in the client's view. It is followed below one of the policy's roots alone, by no
symbolic link, and from there on the file is its device and inode. For a caller that is confined to
directories, every way in which a path can fail gives the same answer, so that the answer tells
nothing about what lies outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sealsvc.core.errors import Refusal
from sealsvc.core.model import FileId
from sealsvc.core.paths import lies_below
from sealsvc.lifecycle.policy import Policy
from sealsvc.linux import filesystem
from sealsvc.linux.host import Host
from sealsvc.runtime.workers import Workers

T = TypeVar("T")

# Answers that depend on what a path leads to.
_TELLING = frozenset({"no-such-file", "outside-roots", "not-a-regular-file", "io-error"})


def no_such_file(path: str) -> Refusal:
    return Refusal("no-such-file", f"{path} does not exist", {"path": path})


class Paths:
    def __init__(self, host: Host, workers: Workers, policy: Policy) -> None:
        self._host, self._workers, self._policy = host, workers, policy

    async def identify(self, path: str, below: Sequence[str] | None = None) -> FileId:
        """The file or directory at an absolute path.

        Without `below` (a local operator) the path may lead anywhere. With `below` it must lie
        below one of these directories and below one of the policy's roots, and contain no symbolic
        link from that root on. Raises Refusal `no-such-file`.
        """
        if below is not None and not lies_below(path, below):
            raise no_such_file(path)
        roots = None if below is None else self._policy.roots
        try:
            return await self.run(path, self._host.identify, path, roots)
        except Refusal as refusal:
            raise concealed(refusal, path, below) from None

    async def run(self, path: str, function: Callable[..., T], *arguments: object) -> T:
        """Call what follows the path, in a thread. A pool for each device, apart from that of
        grants: a path may lead to a file system that hangs."""
        pool = self._workers.of(("paths", filesystem.place_at(path)))
        return await pool.run(function, *arguments)


def concealed(refusal: Refusal, path: str, below: Sequence[str] | None) -> Refusal:
    """The refusal as a caller confined to `below` (None: not confined) may see it."""
    if below is None or refusal.code not in _TELLING:
        return refusal
    return no_such_file(path)
