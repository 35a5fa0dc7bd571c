"""What fanotify does not see, by file system and kind of seal."""

from __future__ import annotations

from pathlib import Path

from sealsvc.core.model import Gap, Kind
from sealsvc.linux.filesystem import Filesystem

_SHARED = [Kind.SHARED]
_BOTH = [Kind.SHARED, Kind.EXCLUSIVE]
_GAPS = {
    "ext4": (
        Gap(
            risk="ext4-move-ext",
            kinds=_SHARED,
            why="EXT4_IOC_MOVE_EXT (e4defrag) on a writable descriptor raises no event",
        ),
        Gap(
            risk="ext4-swap-boot",
            kinds=_SHARED,
            why="EXT4_IOC_SWAP_BOOT by a privileged program raises no event",
        ),
        Gap(
            risk="ext4-inode-flags",
            kinds=_SHARED,
            why="chattr +j and -e (FS_IOC_SETFLAGS, EXT4_IOC_MIGRATE) raise no event",
        ),
    ),
    "xfs": (
        Gap(
            risk="xfs-swapext",
            kinds=_SHARED,
            why="XFS_IOC_SWAPEXT (xfs_fsr) on a writable descriptor raises no event",
        ),
    ),
}
_GAPS_EVERYWHERE = (
    Gap(
        risk="loop-device",
        kinds=_SHARED,
        why="a loop device set up on the file later writes and discards below every event",
    ),
)
# nfsd changes a size by calling notify_change() itself (nfsd_setattr), without opening the file.
_NFSD = Path("/sys/module/nfsd")
_NFSD_GAP = Gap(
    risk="nfs-truncate",
    kinds=_BOTH,
    why="the kernel's NFS server is loaded: truncation by an NFS client raises no event",
)


def gaps(filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
    """The gaps for seals of this kind, but for those that depend on overlays
    (overlay_mounts.py)."""
    found = (*_GAPS.get(filesystem.type, ()), *_GAPS_EVERYWHERE)
    if _NFSD.exists():
        found = (*found, _NFSD_GAP)
    return tuple(gap for gap in found if kind in gap.kinds)
