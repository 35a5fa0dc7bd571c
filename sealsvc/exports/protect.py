"""What keeps an export from waiting for itself when memory runs short."""

from __future__ import annotations

import ctypes
import logging
import os
from contextlib import suppress
from pathlib import Path

from sealsvc.linux import libc

log = logging.getLogger(__name__)

_PR_SET_IO_FLUSHER = 57  # include/uapi/linux/prctl.h, since v5.6; kept across exec and fork
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_NEVER = "-1000"


def protect(*, lock_memory: bool) -> None:
    """This process's memory allocations start no write-back through the device that it serves
    (PR_SET_IO_FLUSHER), and it is the last that is ended when memory is short. With `lock_memory`
    nothing of it is paged out; that is lost at exec, where the program has to do it itself. What
    cannot be had (it takes CAP_SYS_RESOURCE) is logged."""
    try:
        libc.call("prctl", _PR_SET_IO_FLUSHER, ctypes.c_ulong(1), 0, 0, 0)
    except OSError as error:
        log.warning("PR_SET_IO_FLUSHER: %s", error.strerror)
    if lock_memory:
        try:
            libc.call("mlockall", _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
        except OSError as error:
            log.warning("mlockall: %s", error.strerror)
    with suppress(PermissionError):
        Path("/proc/self/oom_score_adj").write_text(_NEVER)


def below(device: int) -> set[int]:
    """The block devices that `device` (st_rdev or st_dev) is made of, itself included."""
    found: set[int] = set()
    todo = [device]
    while todo:
        number = todo.pop()
        if number in found:
            continue
        found.add(number)
        here = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        if (here / "partition").exists():
            todo.append(_number(here.resolve().parent))
        todo += [_number(slave) for slave in (here / "slaves").glob("*")]
        with suppress(OSError):  # a loop device's file lies on a file system
            backing = (here / "loop" / "backing_file").read_text().rstrip("\n")
            todo.append(os.stat(backing).st_dev)
    return found


def _number(directory: Path) -> int:
    major, minor = (directory / "dev").read_text().split(":")
    return os.makedev(int(major), int(minor))
