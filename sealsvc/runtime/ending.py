"""The end of the process, which no thread can put off.

Threads that are stuck in the kernel cannot be ended, and the interpreter, the event loop's executor
and registered functions might wait for some. So after the orderly end, in which everything that the
next service needs was let go of by name (the keeper, the registry's lock, the sockets), the process
exits without asking anybody. An orderly end that takes too long is cut off.
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

_LAST_WORDS = 1.0  # seconds for what is still to be logged


def end(status: int) -> None:
    """Does not return."""
    journald.flush(_LAST_WORDS)
    os._exit(status)


def end_within(seconds: float) -> None:
    """Exit with status 1, saying where, unless the process has ended by then."""
    ending = threading.get_ident()

    def cut_off() -> None:
        time.sleep(seconds)
        where = stack_of(sys._current_frames().get(ending))
        log.error("no orderly end within %g s: the service exits while in\n%s", seconds, where)
        end(1)

    threading.Thread(target=cut_off, name="end", daemon=True).start()
