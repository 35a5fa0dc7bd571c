"""Watches for the end of holders. A process is watched once, however many seals it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sealsvc.lifecycle.seals import Seal, SealObserver


class Holders(SealObserver):
    """`exited(seal)` is called for each seal of a process that has ended."""

    def __init__(self, exited: Callable[[Seal], None]) -> None:
        self._exited = exited
        # By pidfd (the seals keep it open), then by token.
        self._seals: dict[int, dict[int, Seal]] = {}

    def watch(self, seal: Seal) -> None:
        """Watch the seal's holder until the seal ends; then close the seal's process."""
        pidfd = seal.process.pidfd
        if pidfd not in self._seals:
            self._seals[pidfd] = {}
            asyncio.get_running_loop().add_reader(pidfd, self._exit, pidfd)
        self._seals[pidfd][seal.token] = seal
        seal.observe(self)

    def _exit(self, pidfd: int) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        for seal in self._seals.pop(pidfd).values():
            self._exited(seal)

    def ended(self, seal: Seal) -> None:
        """See SealObserver. Stops watching, and closes the seal's process."""
        pidfd = seal.process.pidfd
        own = self._seals.get(pidfd, {})
        if own.pop(seal.token, None) and not own:
            del self._seals[pidfd]
            asyncio.get_running_loop().remove_reader(pidfd)
        seal.process.close()
