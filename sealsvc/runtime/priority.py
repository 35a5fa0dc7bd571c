"""The nice values of the service's threads; on Linux each thread has its own (setpriority(2)).

Others wait for the service: a holder for its grant, a held operation for the recall. So it gets the
processor before programs that only compute, as the keeper does (native/keeper/main.c). What copies,
verifies and scrubs data has the usual value.
"""

from __future__ import annotations

import os
from contextlib import suppress

_FIRST = -10  # the keeper's
_USUAL = 0


def prefer() -> None:
    """Prefer the calling thread, and those that it starts. Ignored without CAP_SYS_NICE, unless the
    process was started so (Nice= in systemd.exec(5))."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, min(_FIRST, os.getpriority(os.PRIO_PROCESS, 0)))


def be_usual() -> None:
    """End the preference of the calling thread."""
    if os.getpriority(os.PRIO_PROCESS, 0) < _USUAL:
        os.setpriority(os.PRIO_PROCESS, 0, _USUAL)
