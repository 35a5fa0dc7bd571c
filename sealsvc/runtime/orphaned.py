"""Ends a process that works for the service when the service ends, for whatever reason."""

from __future__ import annotations

import os
import select
import signal
import threading


def end_with_reader(fd: int) -> None:
    """Have this process sent SIGTERM when nobody can read from the pipe `fd` (its write end) any
    more.

    PR_SET_PDEATHSIG does not suffice: the kernel clears it whenever the process changes its
    effective user (commit_creds), as a copy does for each file that it opens.
    """
    threading.Thread(target=_watch, args=(fd,), name="reader watch", daemon=True).start()


def _watch(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # POLLERR, when the last reader is gone, needs not be asked for
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)
