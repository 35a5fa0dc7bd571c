"""Functions of the C library that Python does not wrap, and system calls by number. For what is
called rarely; what is called often, or must not hold the GIL, is in the C module (native.py)."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def call(function: str, *arguments: Any) -> int:
    """The result of a function that returns an int, and -1 with errno when it fails. Integers are
    passed as int; wrap those that are not in a ctypes type. Raises OSError, which names it."""
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)
    return result


def syscall(name: str, number: int, *arguments: Any) -> int:
    """The result of a system call. Integers are passed as long. Raises OSError, which has `name` as
    its filename."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)
    return result
