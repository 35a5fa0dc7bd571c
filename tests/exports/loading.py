"""block_load.py as tests use it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import PATIENCE

_PROGRAM = Path(__file__).with_name("block_load.py")
_DEBIANS = "/usr/bin/python3"  # which has libnbd's bindings
_LONGEST = 7200.0
_ENDS = 2 * PATIENCE  # seconds


@contextmanager
def loaded(node: str, seconds: float = 0.0, slow: str = "") -> Iterator[subprocess.Popen[str]]:
    """A verifying load on a block device, file or NBD export meanwhile: no request of it fails, and
    it writes. After `seconds`, or (0) with the context, it ends. `slow`: as of block_load.py."""
    process = subprocess.Popen(
        [
            _DEBIANS if node.startswith("nbd") else sys.executable, _PROGRAM, node,
            str(seconds or _LONGEST), "3", slow,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        yield process
        if not seconds:
            process.terminate()
        out, error = process.communicate(timeout=_ENDS)
        assert process.returncode == 0, error
        assert int(out) > 10
    finally:
        process.kill()
        process.wait()
