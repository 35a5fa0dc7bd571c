"""Arms file systems before their first seal."""

from __future__ import annotations

import logging
import os

from sealsvc.core.errors import Refusal
from sealsvc.enforce.overlay_mounts import RISK
from sealsvc.enforce.selection import EnforcerSet
from sealsvc.lifecycle.policy import Policy
from sealsvc.linux.host import Host

log = logging.getLogger(__name__)


def arm_roots(
    host: Host, enforcers: EnforcerSet, policy: Policy, *, at_start: bool = False
) -> None:
    """Arm the mounted file systems below the roots, so that descriptors which are opened from now
    on are seen by every later seal. A failure is logged: that file system is then armed at its
    first grant. Runs in a worker thread."""
    if host.simulated:
        return  # a simulated file system has no mount to open
    for filesystem in host.filesystems(policy.roots):
        if filesystem.unsupported:
            continue
        try:
            fd = os.open(filesystem.mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for enforcer in enforcers.available:
                    enforcer.arm(filesystem, fd)
                if not policy.accepts(RISK):
                    enforcers.refuse_overlays(filesystem, fd, at_start=at_start)
            finally:
                os.close(fd)
        except (Refusal, OSError) as error:
            log.warning("%s is armed at its first grant: %s", filesystem.mount, error)
