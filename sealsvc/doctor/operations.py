"""The catalogue: every operation that might move a sealed block, and the ways to reach the file.

An act is one function that runs in the second process. What it needs stands beside it in the
table: the descriptor's flags (None: it works on the path), what comes first (`begin`), and on which
file systems it changes the extent map of [START, START + LENGTH) of an unsealed file, which
tests/doctor asserts.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from sealsvc.doctor import acts_beside as beside
from sealsvc.doctor import acts_file as file
from sealsvc.doctor import acts_hidden as hidden
from sealsvc.doctor import acts_ioctl as ioctl
from sealsvc.doctor import acts_sharing as sharing
from sealsvc.doctor import acts_tools as tools
from sealsvc.doctor.scene import Scene

Act = Callable[[Scene], None]
XFS, EXT4, BTRFS = "xfs", "ext4", "btrfs"
EVERYWHERE = (XFS, EXT4, BTRFS)
NOWHERE: tuple[str, ...] = ()


class Route(StrEnum):
    """How the second process reaches the file. `overlay` is mounted on the file's directory as
    its upper layer, `lower` as its lower one."""

    PATH = "path"
    HARD_LINK = "hard-link"
    BIND = "bind-mount"
    PROC_FD = "proc-pid-fd"
    NAMESPACE = "mount-namespace"
    OVERLAY = "overlay"
    LOWER = "overlay-lower"


@dataclass(frozen=True)
class Operation:
    """`early`: the descriptor is opened, `begin` is done and an overlay is mounted before the
    seal is granted; else after. `filesystems` know it (None: any), and on those of `changes` it
    changes the sealed map. `disruptive`: it disturbs the whole file system. `sole_reader`: nobody
    may have the file open for writing, the holder neither. `tail`: the file needs a hole behind
    its written part. `twin` is false where the doctor's own descriptors decide the result on an
    unsealed file. `timeout`: seconds until it counts as blocked, when no recall tells."""

    name: str
    act: Act
    flags: int | None = os.O_RDWR
    begin: Act | None = None
    early: bool = False
    route: Route = Route.PATH
    filesystems: tuple[str, ...] | None = None
    changes: tuple[str, ...] = NOWHERE
    disruptive: bool = False
    sole_reader: bool = False
    tail: bool = False
    twin: bool = True
    timeout: float = 2.0

    def applies_to(self, filesystem: str) -> bool:
        return self.filesystems is None or filesystem in self.filesystems

    def changes_map(self, filesystem: str) -> bool:
        return filesystem in self.changes


def _by_path(name: str, act: Act, changes: tuple[str, ...] = NOWHERE) -> Operation:
    return Operation(name, act, flags=None, changes=changes)


def _by_fd(name: str, act: Act, changes: tuple[str, ...] = NOWHERE) -> Operation:
    return Operation(name, act, changes=changes)


def _only(filesystem: str, name: str, act: Act, changes: bool = True) -> Operation:
    only = (filesystem,)
    return Operation(name, act, filesystems=only, changes=only if changes else NOWHERE)


def _direct(name: str, act: Act, changes: tuple[str, ...]) -> Operation:
    return Operation(name, act, flags=os.O_RDWR | os.O_DIRECT, changes=changes)


def _beside(name: str, act: Act, changes: bool = True) -> Operation:
    """Outside of the range, on a file system whose copies on write reach beyond what is written."""
    return Operation(
        name,
        act,
        flags=os.O_RDWR | os.O_DIRECT,
        filesystems=(XFS,),
        changes=(XFS,) if changes else NOWHERE,
    )


def _tool(name: str, act: Act, changes: tuple[str, ...] = NOWHERE) -> Operation:
    return Operation(name, act, flags=None, changes=changes, timeout=15.0)


def _whole(
    name: str, act: Act, *, twin: bool = True, only: tuple[str, ...] | None = None
) -> Operation:
    return Operation(
        name, act, flags=None, filesystems=only, disruptive=True, twin=twin, timeout=15.0
    )


REFLINK = (XFS, BTRFS)

_PATHS = (
    _by_path("open-rdonly", file.open_readonly),
    _by_path("open-rdwr", file.open_readwrite),
    _by_path("open-trunc", file.open_truncate, EVERYWHERE),
    _by_path("open-by-handle", file.open_by_handle),
    _by_path("io_uring-open-trunc", sharing.ring_open_truncate, EVERYWHERE),
    _by_path("io_uring-openat2-trunc", hidden.ring_open_how, EVERYWHERE),
    _by_path("core-dump", hidden.core_dump),
    replace(_by_path("execve", file.execute), sole_reader=True),
    _by_path("truncate-into", file.truncate_into, EVERYWHERE),
    _by_path("truncate-below", file.truncate_below, EVERYWHERE),
    _by_path("truncate-beyond", file.truncate_beyond),
    _by_path("unlink", file.unlink),
    _by_path("rename", file.rename),
    _by_path("rename-over", file.rename_over),
    _by_path("link", file.link),
    _by_path("file-setattr", file.set_attributes),
)

_DESCRIPTORS = (
    _by_fd("ftruncate-into", file.ftruncate_into, EVERYWHERE),
    _by_fd("ftruncate-beyond", file.ftruncate_beyond),
    _by_fd("fallocate", file.fallocate_plain),
    _by_fd("fallocate-keep-size", file.fallocate_keep_size),
    _by_fd("fallocate-punch-hole", file.punch_hole, EVERYWHERE),
    _by_fd("fallocate-collapse-range", file.collapse_range, EVERYWHERE),
    _by_fd("fallocate-insert-range", file.insert_range, EVERYWHERE),
    _by_fd("fallocate-zero-range", file.zero_range, EVERYWHERE),
    _by_fd("fallocate-unshare-range", file.unshare_range),
    _by_fd("fallocate-write-zeroes", file.write_zeroes),
    replace(_by_fd("pread", file.read), flags=os.O_RDONLY),
    _by_fd("pwrite", file.write),
    _by_fd("pwrite-extending", file.write_extending),
    _direct("pwrite-direct", file.write_direct, NOWHERE),
    _by_fd("pwritev", file.write_vector),
    _direct("pwritev2-atomic", file.write_atomic, (XFS,)),
    _by_fd("splice-into", file.splice_into),
    _by_fd("sendfile-into", file.sendfile_into),
    _by_fd("mmap-store", file.store),
    _by_fd("mmap-store-hole", file.store_into_hole),
    _by_fd("madvise-remove", file.remove_mapped, EVERYWHERE),
    _by_fd("unlink-last-close", file.unlink_and_close),
    _by_fd("chattr", file.change_flags),
    _by_fd("ficlone-source", sharing.clone_source, REFLINK),
    _by_fd("ficlone-destination", sharing.clone_destination, REFLINK),
    _by_fd("ficlonerange-source", sharing.clone_range_source, REFLINK),
    _by_fd("ficlonerange-destination", sharing.clone_range_destination, REFLINK),
    _by_fd("fideduperange-source", sharing.dedupe_source, REFLINK),
    _by_fd("fideduperange-destination", sharing.dedupe_destination, REFLINK),
    _by_fd("copy-file-range-source", file.copy_source, REFLINK),
    _by_fd("copy-file-range-destination", file.copy_destination, REFLINK),
    _direct("aio-write", sharing.aio_write, NOWHERE),
    _direct("aio-write-atomic", sharing.aio_write_atomic, (XFS,)),
    _by_fd("io_uring-read", sharing.ring_read),
    _by_fd("io_uring-write", sharing.ring_write),
    _direct("io_uring-write-atomic", sharing.ring_write_atomic, (XFS,)),
    _by_fd("io_uring-fallocate", sharing.ring_punch, EVERYWHERE),
    _by_fd("io_uring-sqpoll-fallocate", sharing.ring_punch_sqpoll, EVERYWHERE),
    _by_fd("io_uring-ftruncate", sharing.ring_ftruncate, EVERYWHERE),
    _only(XFS, "xfs-exchange-range-first", sharing.exchange_first),
    _only(XFS, "xfs-exchange-range-second", sharing.exchange_second),
    _only(XFS, "xfs-swapext-target", sharing.swap_target),
    _only(XFS, "xfs-swapext-donor", sharing.swap_donor),
    _only(XFS, "xfs-resvsp", sharing.xfs_reserve, changes=False),
    _only(XFS, "xfs-unresvsp", sharing.xfs_unreserve),
    _only(XFS, "xfs-zero-range", sharing.xfs_zero),
    _only(EXT4, "ext4-move-ext-original", sharing.move_original),
    _only(EXT4, "ext4-move-ext-donor", sharing.move_donor),
    _only(BTRFS, "btrfs-defrag", sharing.btrfs_defragment),
    Operation("loop-discard", tools.loop_discard, begin=tools.attach_loop, changes=EVERYWHERE),
    Operation("loop-write", tools.loop_write, begin=tools.attach_loop),
)

# Other ways to do what stands above, and commands of one file system. How a descriptor was opened
# makes no difference of its own to them, so that they are not measured a second time for it.
_FURTHER = (
    _direct("io_uring-worker-write-atomic", hidden.worker_write_atomic, (XFS,)),
    _by_fd("io_uring-worker-fallocate", hidden.worker_punch, EVERYWHERE),
    _by_fd("io_uring-linked-fallocate", hidden.linked_punch, EVERYWHERE),
    _by_fd("io_uring-worker-ftruncate", hidden.worker_ftruncate, EVERYWHERE),
    _by_fd("io_uring-madvise-remove", hidden.ring_remove, EVERYWHERE),
    _by_fd("madvise-remove-high-bits", hidden.remove_high_bits, EVERYWHERE),
    _by_fd("int80-fallocate", hidden.compat_punch, EVERYWHERE),
    _by_fd("int80-ftruncate", hidden.compat_ftruncate, EVERYWHERE),
    _beside("ficlonerange-beside", beside.clone_beside),
    _beside("ficlonerange-source-beside", beside.shared_beside),
    _beside("pwritev2-atomic-beside", beside.atomic_beside),
    _beside("aio-write-atomic-beside", beside.aio_atomic_beside),
    _beside("io_uring-write-atomic-beside", beside.ring_atomic_beside),
    _beside("fallocate-punch-hole-beside", beside.punch_beside, changes=False),
    _only(XFS, "xfs-exchange-range-to-end", ioctl.exchange_to_end),
    _only(XFS, "xfs-commit-range", ioctl.commit_range),
    _only(XFS, "xfs-cowextsize-hint", ioctl.cow_hint, changes=False),
    _only(XFS, "xfs-free-eofblocks", ioctl.free_eofblocks, changes=False),
    _only(XFS, "xfs-scrub-repair", ioctl.repair_map, changes=False),
    _only(XFS, "project-id", ioctl.project, changes=False),
    _only(EXT4, "ext4-swap-boot", ioctl.swap_boot),
    _only(EXT4, "ext4-alloc-da-blks", ioctl.allocate_delayed, changes=False),
    _only(EXT4, "ext4-precache-extents", ioctl.precache_extents, changes=False),
    _only(EXT4, "ext4-clear-es-cache", ioctl.clear_extent_cache, changes=False),
)

_TOOLS = (
    _tool("cp-reflink-source", tools.cp_reflink_source, (XFS,)),
    _tool("cp-reflink-over", tools.cp_reflink_over, EVERYWHERE),
    _tool("cp-over", tools.cp_over, EVERYWHERE),
    _tool("fallocate-tool", tools.fallocate_tool, EVERYWHERE),
    _tool("truncate-tool", tools.truncate_tool, EVERYWHERE),
    _tool("mv-tool", tools.mv_tool),
    _tool("rm-tool", tools.rm_tool),
    _tool("fstrim-tool", tools.fstrim_tool),
    _tool("fitrim", tools.trim),
    replace(_tool("e4defrag", tools.e4defrag, (EXT4,)), filesystems=(EXT4,)),
    replace(_tool("xfs-fsr", tools.xfs_fsr, (XFS,)), filesystems=(XFS,)),
    replace(_tool("btrfs-snapshot", tools.snapshot, (BTRFS,)), filesystems=(BTRFS,)),
)

_WHOLE = (
    _whole("freeze", tools.freeze),
    _whole("grow", tools.grow),
    _whole("shrink", tools.shrink),
    _whole("remount-ro", tools.remount_readonly, twin=False),
    _whole("umount", tools.unmount, twin=False),
    replace(_whole("btrfs-balance", tools.balance, only=(BTRFS,)), changes=(BTRFS,)),
)

_MAPPED = {
    "mmap-store",
    "mmap-store-hole",
    "madvise-remove",
    "madvise-remove-high-bits",
    "io_uring-madvise-remove",
}
_TAILED = {"mmap-store-hole"}


def _completed(operation: Operation) -> Operation:
    if operation.name in _MAPPED:
        operation = replace(operation, begin=file.map_file)
    return replace(operation, tail=operation.name in _TAILED)


def _early(operation: Operation) -> Operation:
    return replace(operation, name=f"{operation.name}/early", early=True)


def _through(route: Route, operation: Operation, early: bool = False) -> Operation:
    name = f"{operation.name}/{route}" + ("-early" if early else "")
    return replace(operation, name=name, route=route, early=early)


def _routed(named: dict[str, Operation]) -> list[Operation]:
    some = [
        named[name]
        for name in ("open-trunc", "truncate-into", "ftruncate-into", "fallocate-punch-hole")
    ]
    both = [*some, named["ficlone-destination"]]
    made = [
        _through(route, operation)
        for route in (Route.HARD_LINK, Route.BIND, Route.PROC_FD, Route.NAMESPACE)
        for operation in both
    ]
    # An overlay has its own inodes: what it does below is its own doing, and clones end at it.
    made += [_through(Route.OVERLAY, op, early) for early in (False, True) for op in some]
    # btrfs cannot clone a NOCOW file into a new file, which is not: it copies.
    copy_up = Operation("open-rdwr", tools.copy_up, flags=None, changes=(XFS,))
    return made + [_through(Route.LOWER, copy_up, early) for early in (False, True)]


def catalogue() -> tuple[Operation, ...]:
    """Every operation and variant, in the order in which they are measured."""
    descriptors = tuple(_completed(operation) for operation in _DESCRIPTORS)
    further = tuple(_completed(operation) for operation in _FURTHER)
    named = {operation.name: operation for operation in (*_PATHS, *descriptors)}
    return (
        *_PATHS,
        *descriptors,
        *(_early(operation) for operation in descriptors),
        *further,
        *_routed(named),
        *_TOOLS,
        *_WHOLE,
    )


CATALOGUE = {operation.name: operation for operation in catalogue()}
