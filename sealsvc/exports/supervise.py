"""An export whose process is started again when it dies (`--restart`).

The supervisor is the parent of the export's process and has imported what serving takes: between a
kill and the next request are a fork and a new seal. It touches no file of the export. When it is
killed itself, the export goes on without it (but for nbdkit, which ends with its parent:
standby.py).
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

from sealsvc.core.errors import Refusal
from sealsvc.exports.protect import protect

FAILED = 1
TOLD = (signal.SIGTERM, signal.SIGINT)
AWAITED = {*TOLD, signal.SIGCHLD}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0


def supervise(serve: Callable[[bool], int], served: Callable[[int], bool], *, recover: bool) -> int:
    """Call serve(recover) in a child, and serve(True) in another whenever it has died. `served`
    tells whether the child of this number has ever served: then the next one is started at once,
    else after a pause that grows to 5 s. Ends with an exit status when the child ends with 0, when
    the first one fails before it has served, or at SIGTERM, which the child gets first."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
    protect(lock_memory=True)
    ever, pause = False, 0.0
    while True:
        child = _started(serve, recover, mask)
        status, told = _end_of(child)
        if told or status == 0:
            return 0 if status == -signal.SIGTERM else abs(status)
        if served(child):
            ever, pause = True, 0.0
        elif not ever and not recover:
            return abs(status)
        else:
            pause = lengthened(pause)
        print(f"process {child} ended with {status}: starting another", file=sys.stderr, flush=True)
        if told_within(pause):
            return 0
        recover = True


def lengthened(pause: float) -> float:
    """The pause, in seconds, before another process is started after one that never served."""
    return min(max(_FIRST_PAUSE, pause * 2), _LONGEST_PAUSE)


def _started(serve: Callable[[bool], int], recover: bool, mask: set[int]) -> int:
    if child := os.fork():
        return child
    status = FAILED
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = serve(recover)
    except Refusal as refusal:
        print(refusal, file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _end_of(child: int) -> tuple[int, bool]:
    """Its exit status or minus the signal that ended it, and whether we were told to end."""
    told = False
    while True:
        number = signal.sigwaitinfo(AWAITED).si_signo
        if number in TOLD:
            told = True
            os.kill(child, signal.SIGTERM)  # not reaped yet: the number is still its
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), told


def told_within(seconds: float) -> bool:
    """Whether a signal tells us to end, before so many seconds are over."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        found = signal.sigtimedwait(TOLD, left)
        if found is not None:
            return True
    return signal.sigtimedwait(TOLD, 0) is not None
