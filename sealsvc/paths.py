"""The one place where a path that a client sent becomes a file.

A path is text in the client's view. It is followed below one of the policy's roots alone, by no
symbolic link, and from there on the file is its device and inode. For a caller that is confined to
directories, every way in which a path can fail gives the same answer, so that the answer tells
nothing about what lies outside.
"""

from __future__ import annotations

from collections.abc import Sequence

from sealsvc import filesystem
from sealsvc.errors import Refusal
from sealsvc.host import Host
from sealsvc.model import FileId
from sealsvc.policy import Policy, lies_below
from sealsvc.workers import Workers

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
        # A pool for each device: a path on a file system that hangs delays no other file system.
        pool = self._workers.of(filesystem.device_at(path))
        try:
            return await pool.run(self._host.identify, path, roots)
        except Refusal as refusal:
            raise concealed(refusal, path, below) from None


def concealed(refusal: Refusal, path: str, below: Sequence[str] | None) -> Refusal:
    """The refusal as a caller confined to `below` (None: not confined) may see it."""
    if below is None or refusal.code not in _TELLING:
        return refusal
    return no_such_file(path)
