"""A process that works for the service ends when the service does, whatever ended it."""

from __future__ import annotations

import os
import select
import signal
import threading


def end_with_reader(fd: int) -> None:
    """Be sent SIGTERM when nobody can read from the pipe `fd` any more.

    PR_SET_PDEATHSIG would not do: the kernel clears it whenever the process changes its effective
    user (commit_creds), as a copy does for each file that it opens.
    """
    threading.Thread(target=_watch, args=(fd,), name="reader watch", daemon=True).start()


def _watch(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # POLLERR comes unasked when the last reader is gone
    poll.poll()
    os.kill(os.getpid(), signal.SIGTERM)
