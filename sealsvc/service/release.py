"""Releases everything that a service which ended has left in force; for operators."""

from __future__ import annotations

from pathlib import Path

from sealsvc.enforce import bpf_programs
from sealsvc.enforce.keeper_start import release_all
from sealsvc.runtime.config import ServiceSection


def release(section: ServiceSection) -> bool:
    """End the keeper, with its guards, leases and pins, and unpin the BPF programs. False when
    there was nothing to release. Raises KeeperError (EBUSY) while a service is running, OSError."""
    kept = release_all(section.keeper_path)
    return bpf_programs.unpin(Path(section.bpf_path)) or kept
