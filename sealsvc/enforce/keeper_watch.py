"""Notices a keeper that does not answer: stopped, frozen, or stuck.

While it is, whatever opens a watched file waits, and so would the event loop at its next request to
the keeper. So a thread asks it on a connection of its own, and the service refuses what needs the
keeper until it answers again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing

from sealsvc.core.errors import Refusal
from sealsvc.enforce.keeper import Keeper

log = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds between two questions
_PATIENCE = 2.0  # seconds for an answer


class KeeperWatch:
    """`silent(reason)` is called on the watch's thread when the keeper does not answer, and with an
    empty reason when it answers again."""

    def __init__(self, path: str, silent: Callable[[str], None]) -> None:
        self._path, self._silent = path, silent
        self._stop = threading.Event()
        self.reason = ""  # why what needs the keeper is refused; empty: it answers

    def start(self) -> None:
        threading.Thread(target=self._run, name="keeper-watch", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def refuse(self) -> None:
        """Raises try-later while the keeper does not answer."""
        if self.reason:
            raise Refusal("try-later", self.reason, retry_after=5.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with closing(Keeper(self._path)) as keeper:
                    self._ask(keeper)
            except OSError:  # it has ended: who reads its reports sees that
                self._stop.wait(_PAUSE)

    def _ask(self, keeper: Keeper) -> None:
        """Again and again on one connection, until one answer is late: then wait for it."""
        while not self._stop.wait(_PAUSE):
            try:
                there = keeper.greet(timeout=_PATIENCE)
            except Refusal:
                self._tell(
                    f"the keeper (process {keeper.pid}) does not answer for {_PATIENCE:g} s: it is"
                    " stopped, frozen or stuck, and who opens files on a watched file system waits"
                )
                while not (self._stop.is_set() or keeper.has_ended(_PAUSE)):
                    pass
                if not self._stop.is_set():
                    self._tell("")
                return
            if there is None:
                return

    def _tell(self, reason: str) -> None:
        self.reason = reason
        # Here, since the event loop may be waiting for the keeper itself.
        log.warning("%s", reason or "the keeper answers again")
        self._silent(reason)
