"""Ends the process, even if threads are stuck.

Threads that are stuck in the kernel cannot be ended, and the interpreter, the event loop's executor
and atexit functions might wait for them. So after the orderly shutdown, which explicitly releases
everything that the next service needs (the keeper, the registry's lock, the sockets), the process
exits with os._exit(). An orderly shutdown that takes too long is cut off.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

from sealsvc.runtime import journald
from sealsvc.runtime.loop_watch import stack_of

log = logging.getLogger(__name__)

_LAST_WORDS = 1.0  # seconds in which pending log records are written


def end(status: int) -> None:
    """Exit with this status. Does not return."""
    journald.flush(_LAST_WORDS)
    os._exit(status)


def end_within(seconds: float) -> None:
    """Exit with status 1 in `seconds`, unless the process has ended by then. Logs where the calling
    thread is stuck."""
    ending = threading.get_ident()

    def cut_off() -> None:
        time.sleep(seconds)
        where = stack_of(sys._current_frames().get(ending))
        log.error("no orderly end within %g s: the service exits while in\n%s", seconds, where)
        end(1)

    threading.Thread(target=cut_off, name="end", daemon=True).start()
