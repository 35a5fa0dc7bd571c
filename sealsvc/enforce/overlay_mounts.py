"""Truncation through overlays that are mounted later, where bpf does not see it: refused or a risk.

truncate(2) through an overlay raises no event for its upper file and breaks no lease. Since Linux
5.11 a user who can create a user namespace can mount an overlay there, and truncate through it the
files that this user may write. If policy does not accept this risk, the keeper refuses such mounts
on the file systems that it watches (native/gate/overlays.c). Overlays that were mounted earlier may
be in no mount table that the service reads. So the risk counts as closed only on a file system that
is watched since the service started, or if no overlay was mounted at all when the watch began.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sealsvc.core.model import Kind
from sealsvc.enforce.keeper import Keeper, KeeperError
from sealsvc.linux.filesystem import Filesystem
from sealsvc.protocol.system import Gap

log = logging.getLogger(__name__)

RISK = "overlay-truncate"
_GAP = Gap(
    risk=RISK,
    kinds=[Kind.SHARED, Kind.EXCLUSIVE],
    why="truncate(2) through an overlay mounted over the file later raises no event; such overlays"
    " are refused on file systems below policy.roots that are mounted when the service starts",
)
_TYPES = Path("/proc/filesystems")
_USES = Path("/sys/module/overlay/refcnt")  # where it is a module


class OverlayMounts:
    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._closed: set[int] = set()  # devices

    def refuse(self, filesystem: Filesystem, fd: int, *, at_start: bool) -> None:
        """Refuse overlays of unprivileged users on the file system of `fd` from now on. `at_start`:
        the service has just begun to watch it, before others use it."""
        try:
            before = self._keeper.refuse_overlays(fd)
        except KeeperError as error:
            log.warning("overlays on %s cannot be refused: %s", filesystem.mount, error)
            self._closed.discard(filesystem.device)
            return
        if not before:  # the device number may have been another file system's
            self._closed.discard(filesystem.device)
        if at_start or _none_is_mounted():
            self._closed.add(filesystem.device)

    def refused(self) -> int:
        """How many mounts were refused so far."""
        return self._keeper.overlays_refused() if self._closed else 0

    def gaps(self, filesystem: Filesystem) -> tuple[Gap, ...]:
        return () if filesystem.device in self._closed else (_GAP,)


def _none_is_mounted() -> bool:
    """Is it known that there is no overlay, in whatever mount namespace or in none? Each super
    block uses the module (fs/super.c alloc_super). Where it is built in, this is not known."""
    if "overlay" not in _TYPES.read_text().split():
        return True
    try:
        return _USES.read_text().strip() == "0"
    except OSError:
        return False
