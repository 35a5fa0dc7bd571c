"""Small state files beside the control socket, which are always replaced as a whole."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def replace(file: Path, data: bytes, what: str) -> None:
    """Replace the file's contents atomically; mode 0600. When it cannot be written, a warning that
    names `what` is logged, and the file stays as it was."""
    fresh = file.with_suffix(".new")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
            out.write(data)
        fresh.replace(file)
    except OSError as error:
        log.warning("the %s cannot be kept in %s: %s", what, file, error)
