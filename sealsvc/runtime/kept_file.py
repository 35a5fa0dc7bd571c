"""Small files beside the control socket that outlive the service, replaced as a whole."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)


def replace(file: Path, data: bytes, what: str) -> None:
    """For the owner alone. When it cannot be written, the log says so of `what`, and it stays as it
    was."""
    fresh = file.with_suffix(".new")
    try:
        with open(fresh, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as out:
            out.write(data)
        fresh.replace(file)
    except OSError as error:
        log.warning("the %s cannot be kept in %s: %s", what, file, error)
