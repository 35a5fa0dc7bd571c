"""Programs of ours that serve exports, and who has a block device open."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """Its path; "" when it is not installed."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or ""


def is_claimed(node: str) -> str:
    """That `node` is mounted or part of another device (device-mapper, md): then the kernel refuses
    to open it exclusively. "" when it is not. That others have it open is not seen."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return f"{node} is mounted, or part of another device"
    return ""
