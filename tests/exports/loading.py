"""block_load.py as tests use it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAM = Path(__file__).with_name("block_load.py")
PATIENCE = 240.0


@contextmanager
def loaded(node: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """A verifying load on a block device meanwhile: no request of it fails, and it writes."""
    process = subprocess.Popen(
        [sys.executable, _PROGRAM, node, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, error
        assert int(out) > 10
    finally:
        process.kill()
        process.wait()
