"""Letting go of everything that a dead service left in force: the operator's way out."""

from __future__ import annotations

from pathlib import Path

from sealsvc.enforce import bpf
from sealsvc.enforce.keeper import release_all
from sealsvc.runtime.config import ServiceSection


def release(section: ServiceSection) -> bool:
    """End the keeper, with guards, leases and pins, and take the BPF programs away. False when
    nothing was there. Raises KeeperError (EBUSY) while a service is running, OSError."""
    kept = release_all(section.keeper_path)
    return bpf.unpin(Path(section.bpf_path)) or kept
