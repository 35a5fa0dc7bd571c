"""What lies under a file: its file system, and whether a seal can be kept there."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable
from dataclasses import dataclass

from sealsvc.linux import mountinfo, native
from sealsvc.linux.mountinfo import Mount


@dataclass(frozen=True, slots=True)
class Filesystem:
    """`block_size` in bytes; `reflink` is true where files may share blocks. `mount` and `options`
    are empty where no mount of it can be seen."""

    mount: str
    type: str
    source: str
    options: str
    device: int
    block_size: int = 4096
    reflink: bool = False

    @property
    def dax(self) -> bool:
        return bool(re.search(r"\bdax(=always)?(,|$)", self.options))

    @property
    def read_only(self) -> bool:
        """Of the file system as a whole: the options of the mount itself come last."""
        return self.options.split(",")[0] == "ro"

    @property
    def unsupported(self) -> str:
        """Why no seal can be kept here; empty when one can."""
        if self.type in SUPPORTED:
            return ""
        return UNSUPPORTED.get(
            self.type, f"{self.type} has not been measured: no coverage is known for it"
        )


SUPPORTED = frozenset({"xfs", "ext4"})

UNSUPPORTED = {
    "btrfs": "btrfs is copy-on-write: overwriting data moves its blocks, and balance and snapshots"
    " move or share extents without any event",
    "tmpfs": "tmpfs, and so a memfd, has no block map: its pages live in memory and move under"
    " reclaim",
    "ramfs": "ramfs has no block map",
    "overlay": "overlay files change their inode at copy-up; seal the file in the upper or lower"
    " file system itself",
    "nfs": "an NFS server changes the extent map out of this machine's sight",
    "nfs4": "an NFS server changes the extent map out of this machine's sight",
    "cifs": "an SMB server changes the extent map out of this machine's sight",
    "fuse": "a FUSE server changes the extent map out of the kernel's sight",
    "fuseblk": "a FUSE server changes the extent map out of the kernel's sight",
    "ext": "it is mounted in no mount namespace that can be read: whether it is ext4 is not known",
    "ext2": "ext2 has not been measured: convert it to ext4",
    "ext3": "ext3 has not been measured: convert it to ext4",
    "squashfs": "squashfs is compressed: its extents have no place that can be addressed",
    "erofs": "erofs may be compressed: its extents have no place that can be addressed",
    "f2fs": "f2fs is log-structured: overwriting data moves its blocks",
}

# include/uapi/linux/magic.h. One number stands for ext2, ext3 and ext4.
_EXT, _XFS = 0xEF53, 0x58465342
_MAGIC = {
    _XFS: "xfs",
    0x9123683E: "btrfs",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0x958458F6: "hugetlbfs",
    0x794C7630: "overlay",
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "cifs",
    0x65735546: "fuse",
    0x73717368: "squashfs",
    0xE0F5E1E2: "erofs",
    0xF2F52010: "f2fs",
}


def described(fd: int, mount: Mount | None) -> Filesystem:
    """The file system of an open file, by the descriptor itself. `mount` is any mount of it, also
    one in another mount namespace; None: it is mounted nowhere that can be seen."""
    st, vfs, magic = os.fstat(fd), os.fstatvfs(fd), native.filesystem_magic(fd)
    kind = _type_of(magic, mount)
    geometry = native.xfs_geometry(fd) if kind == "xfs" else None
    return Filesystem(
        mount=mount.point if mount else "",
        type=kind,
        source=mount.source if mount else "",
        options=mount.options if mount else ("ro" if vfs.f_flag & os.ST_RDONLY else "rw"),
        device=st.st_dev,
        block_size=vfs.f_bsize,
        reflink=bool(geometry and geometry.reflink),
    )


def _type_of(magic: int, mount: Mount | None) -> str:
    if magic == _EXT:
        return mount.type if mount else "ext"
    return _MAGIC.get(magic) or (mount.type if mount else f"file system {magic:#x}")


def place_of(fd: int) -> Hashable:
    """Which pool of workers a descriptor is looked at in: by its device where the service's own
    mount table has it, else by its mount. Asks the file system itself nothing: that may block."""
    mount = mountinfo.mount_of(fd, mountinfo.own().known())
    return mount.device if mount else ("mount", mountinfo.mount_id(fd))


def place_at(path: str) -> Hashable:
    """Likewise of an absolute path without symbolic links."""
    mount = mountinfo.mount_at(path, mountinfo.own().known())
    return mount.device if mount else ("path",)
