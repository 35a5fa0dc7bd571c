"""Overlays that are mounted after a grant, where bpf does not see truncation through them: they are
refused, or the policy accepts the risk.

truncate(2) through an overlay raises no event for its upper file and breaks no lease. Since Linux
5.11 a user who can create a user namespace can mount an overlay there, and truncate through it the
files that this user may write. If the policy does not accept this risk, the keeper refuses such
mounts on the file systems that it watches (native/gate/overlays.c). Overlays that were mounted
earlier may be in no mount table that the service reads. So the risk counts as closed only on a file
system that has been watched since the service started, or if no overlay was mounted at all when the
watch began.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sealsvc.core.model import Gap, Kind
from sealsvc.enforce.keeper import Keeper
from sealsvc.enforce.keeper_messages import KeeperError
from sealsvc.linux.filesystem import Filesystem

log = logging.getLogger(__name__)

RISK = "overlay-truncate"
_GAP = Gap(
    risk=RISK,
    kinds=[Kind.SHARED, Kind.EXCLUSIVE],
    why="truncate(2) through an overlay mounted over the file later raises no event; such overlays"
    " are refused on file systems below policy.roots that are mounted when the service starts",
)
_TYPES = Path("/proc/filesystems")
_USES = Path("/sys/module/overlay/refcnt")  # exists where overlayfs is a module


class OverlayMounts:
    """Has the keeper refuse overlays, and knows on which file systems the risk is closed."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._closed: set[int] = set()  # devices

    def refuse(self, filesystem: Filesystem, fd: int, *, at_start: bool) -> None:
        """Refuse overlays of unprivileged users on the file system of `fd` from now on. `at_start`:
        it is watched since the service started. If the keeper cannot refuse them, a warning is
        logged and the gap stays."""
        try:
            before = self._keeper.refuse_overlays(fd)
        except KeeperError as error:
            log.warning("overlays on %s cannot be refused: %s", filesystem.mount, error)
            self._closed.discard(filesystem.device)
            return
        if not before:  # another file system may have had this device number before
            self._closed.discard(filesystem.device)
        if at_start or _none_is_mounted():
            self._closed.add(filesystem.device)

    def refused(self) -> int:
        """Number of mounts that were refused so far. Raises KeeperError."""
        return self._keeper.overlays_refused() if self._closed else 0

    def gaps(self, filesystem: Filesystem) -> tuple[Gap, ...]:
        """The gap, unless it is closed on this file system."""
        return () if filesystem.device in self._closed else (_GAP,)


def _none_is_mounted() -> bool:
    """Whether it is known that no overlay is mounted, in any mount namespace or in none. Each super
    block holds a reference to the module (fs/super.c alloc_super). False where overlayfs is built
    in, because that is then not known. Raises OSError."""
    if "overlay" not in _TYPES.read_text().split():
        return True
    try:
        return _USES.read_text().strip() == "0"
    except OSError:
        return False
