"""Resolves paths that clients send. No other module does.

A path of a confined caller is resolved below one of the policy's roots only, without following
symbolic links; from then on the file is identified by device and inode. For such a caller every
failure of a path gives the same answer, so that the answer reveals nothing about what lies outside
its directories.
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

# Error codes that reveal what a path leads to.
_TELLING = frozenset({"no-such-file", "outside-roots", "not-a-regular-file", "io-error"})


def no_such_file(path: str) -> Refusal:
    """The one answer to a path that a confined caller may not use, or that does not exist."""
    return Refusal("no-such-file", f"{path} does not exist", {"path": path})


class Paths:
    """Resolves paths in worker threads."""

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
        """Run `function`, which resolves `path`, in a worker thread. The pool is one for each
        device, separate from that of grants, because a path may lead to a file system that hangs.
        Raises what `function` raises."""
        pool = self._workers.of(("paths", filesystem.place_at(path)))
        return await pool.run(function, *arguments)


def concealed(refusal: Refusal, path: str, below: Sequence[str] | None) -> Refusal:
    """The refusal as a caller that is confined to the directories `below` (None: not confined) may
    see it: `no-such-file` for every code that depends on what the path leads to."""
    if below is None or refusal.code not in _TELLING:
        return refusal
    return no_such_file(path)
