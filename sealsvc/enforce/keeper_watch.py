"""Detects a keeper that does not answer because it is stopped, frozen, or stuck.

In that time every open of a watched file waits, and so would the event loop at its next request to
the keeper. So a thread asks the keeper periodically on its own connection, and the service refuses
requests that need the keeper until it answers again.
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
        self.reason = ""  # why requests that need the keeper are refused; empty: it answers

    def start(self) -> None:
        threading.Thread(target=self._run, name="keeper-watch", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def refuse(self) -> None:
        """Raises Refusal `try-later` while the keeper does not answer."""
        if self.reason:
            raise Refusal("try-later", self.reason, retry_after=5.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with closing(Keeper(self._path)) as keeper:
                    self._ask(keeper)
            except OSError:  # the keeper has ended, which is noticed where its reports are read
                self._stop.wait(_PAUSE)

    def _ask(self, keeper: Keeper) -> None:
        """Ask periodically on one connection. When an answer is late, report that, wait until it
        comes, and return."""
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
        # Logged in this thread, because the event loop may be waiting for the keeper itself.
        log.warning("%s", reason or "the keeper answers again")
        self._silent(reason)
