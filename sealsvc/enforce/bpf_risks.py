"""The risks that BPF programs close, and those that stay open where the kernel takes not all of
them."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from sealsvc.core.model import Gap, Kind
from sealsvc.linux.filesystem import Filesystem


@dataclass(frozen=True, slots=True)
class _Cover:
    """A risk, and the programs that close it: it is open when one of them is missing. It exists on
    file systems of these `types` (with `reflink`: only those that share blocks), for seals of these
    `kinds`."""

    risk: str
    programs: frozenset[str]
    why: str
    types: tuple[str, ...] = ("xfs", "ext4")
    reflink: bool = False
    kinds: tuple[Kind, ...] = (Kind.SHARED, Kind.EXCLUSIVE)

    def concerns(self, filesystem: Filesystem, kind: Kind) -> bool:
        return (
            filesystem.type in self.types
            and (filesystem.reflink or not self.reflink)
            and kind in self.kinds
        )


def _cover(risk: str, programs: str, why: str, **more: Any) -> _Cover:
    return _Cover(risk, frozenset(programs.split()), why, **more)


# The risks that the programs close.
_COVERS = (
    _cover("bpf-truncate", "setattr", "truncate(2) is not refused"),
    _cover("bpf-fallocate", "file_permission fallocate", "fallocate(2) is not refused"),
    _cover("bpf-copy", "file_permission copy", "copy_file_range(2) is not refused", reflink=True),
    _cover(
        "bpf-clone", "file_permission clone clone_inner", "FICLONE is not refused", reflink=True
    ),
    _cover(
        "bpf-remap",
        "file_permission remap dedupe",
        "FIDEDUPERANGE and XFS_IOC_EXCHANGE_RANGE are not refused",
        types=("xfs",),
    ),
    _cover(
        "bpf-atomic-write",
        "file_permission writev aio uring",
        "writes with RWF_ATOMIC, which XFS does out of place, are not refused",
        types=("xfs",),
    ),
    _cover(
        "bpf-under-way",
        "fallocate_end copy_end clone_end dedupe_end writev_end aio_end uring_end ioctl_end"
        " ioctl_compat_end",
        "operations that were under way at the grant cannot be waited for",
    ),
    _cover(
        "bpf-open",
        "file_open",
        "opens by others are not refused",
        kinds=(Kind.EXCLUSIVE,),
    ),
    _cover(
        "ext4-move-ext",
        "file_ioctl file_ioctl_compat",
        "EXT4_IOC_MOVE_EXT is not refused",
        types=("ext4",),
    ),
    _cover(
        "xfs-swapext",
        "file_ioctl file_ioctl_compat",
        "XFS_IOC_SWAPEXT is not refused",
        types=("xfs",),
    ),
    _cover("loop-device", "file_ioctl file_ioctl_compat", "loop devices can be set up on the file"),
)
# Risks of other enforcers that this one closes, unless one of these own risks is open.
_CLOSES = {
    "ext4-move-ext": ("ext4-move-ext",),
    "xfs-swapext": ("xfs-swapext",),
    "loop-device": ("loop-device",),
    "overlay-truncate": ("bpf-truncate",),
}
# Own risks that must be closed for the risk that a holder changes the map of its exclusive seal.
_HOLDER_OPERATIONS = frozenset(cover.risk for cover in _COVERS) - {"bpf-open"}


def _open_risks(missing: Set[str], filesystem: Filesystem, kind: Kind) -> list[_Cover]:
    return [
        cover for cover in _COVERS if cover.programs & missing and cover.concerns(filesystem, kind)
    ]


def gaps(missing: Set[str], filesystem: Filesystem, kind: Kind) -> tuple[Gap, ...]:
    """What is not refused on this file system, for seals of this kind, without the programs named
    `missing`."""
    return tuple(
        Gap(
            risk=cover.risk,
            kinds=list(cover.kinds),
            why=f"{cover.why}: this kernel does not take the BPF program"
            f" {', '.join(sorted(cover.programs & missing))}",
        )
        for cover in _open_risks(missing, filesystem, kind)
    )


def closed(missing: Set[str], filesystem: Filesystem, kind: Kind) -> frozenset[str]:
    """The risks of an enforcer in front that the programs close, without those named `missing`."""
    left = {cover.risk for cover in _open_risks(missing, filesystem, kind)}
    found = {risk for risk, needs in _CLOSES.items() if not left.intersection(needs)}
    if not left & _HOLDER_OPERATIONS:
        found.add("holder-operations")
    return frozenset(found)
