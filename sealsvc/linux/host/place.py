"""Do the blocks of a file hold its bytes, and do they stay where they are? FIEMAP alone does not
tell: it reports nothing of ext4's encryption, of journalled data, of swap files, or of a file
system that writes to new places always.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from sealsvc.core.errors import Refusal
from sealsvc.linux import filesystem, mountinfo, native
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import Target

# include/uapi/linux/stat.h
_ATTR_COMPRESSED, _ATTR_ENCRYPTED, _ATTR_VERITY = 0x4, 0x800, 0x100000

# include/uapi/linux/fs.h: FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR
_COMPRESSED_FL, _ENCRYPTED_FL, _JOURNAL_DATA_FL = 0x4, 0x800, 0x4000
_VERITY_FL, _INLINE_DATA_FL = 0x100000, 0x10000000
_XFLAG_REALTIME = 0x1

# fs/xfs/libxfs/xfs_fs.h, v6.18: XFS_FSOP_GEOM_FLAGS_ATTR (bit 0) to XFS_FSOP_GEOM_FLAGS_ZONED (27).
_KNOWN_GEOMETRY = (1 << 28) - 1

_REASONS = {
    "encrypted": "is encrypted (fscrypt): its blocks hold ciphertext, not its bytes",
    "verity": "has fs-verity: whoever reads its blocks directly is not told when they are corrupt,"
    " and it cannot be written",
    "compressed": "is compressed: its blocks do not hold its bytes",
    "inline": "has its data in its inode, and no blocks of its own",
    "journalled": "has its data journalled (data=journal, or chattr +j): after a crash the replay"
    " of the journal overwrites what was written to its blocks directly",
    "journal-mode-unknown": "lies on an ext4 whose journal mode cannot be told: neither"
    " /proc/fs/ext4 nor the mount table has its options",
    "realtime": "lies on the realtime device of its XFS, whose blocks may be written out of place"
    " (zoned) and are not on the device that the mount names",
    "always-cow": "lies on an XFS with always_cow: each write goes to a new place",
    "geometry-unknown": "lies on an XFS with features that this version does not know",
    "swap": "is a swap file in use: the kernel writes to its blocks below the file system",
}


def refuse_if_misplaced(target: Target) -> None:
    """Raises extent-unsuitable with the reason; `flag` in its details is a key of _REASONS."""
    for reason in _found(target):
        raise Refusal(
            "extent-unsuitable",
            f"{target.path} {_REASONS[reason]}; no preparation helps",
            {"path": target.path, "flag": reason, "extents": [], "count": 0},
        )


def _found(target: Target) -> Iterator[str]:
    yield from _by_attributes(target.fd)
    if target.filesystem.type == "ext4":
        yield from _by_journal(target.filesystem)
    if target.filesystem.type == "xfs":
        yield from _by_geometry(target.fd)
    if _is_swap_file(target):
        yield "swap"


def _by_attributes(fd: int) -> Iterator[str]:
    attributes, flags = native.statx_attributes(fd), native.inode_flags(fd)
    if attributes & _ATTR_ENCRYPTED or flags & _ENCRYPTED_FL:
        yield "encrypted"
    if attributes & _ATTR_VERITY or flags & _VERITY_FL:
        yield "verity"
    if attributes & _ATTR_COMPRESSED or flags & _COMPRESSED_FL:
        yield "compressed"
    if flags & _JOURNAL_DATA_FL:
        yield "journalled"
    if flags & _INLINE_DATA_FL:
        yield "inline"


def _by_journal(where: Filesystem) -> Iterator[str]:
    """/proc/fs/ext4 has every option, those of the superblock too (fs/ext4/super.c
    ext4_seq_options_show); the mount table may leave out defaults."""
    options = _ext4_options(where.device)
    if options is None:
        options = where.options.split(",")
        if not where.options:
            yield "journal-mode-unknown"
    if "data=journal" in options:
        yield "journalled"


def _ext4_options(device: int) -> list[str] | None:
    try:
        name = os.path.basename(
            os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
        )
        return Path(f"/proc/fs/ext4/{name}/options").read_text(errors="replace").split("\n")
    except OSError:
        return None


def _by_geometry(fd: int) -> Iterator[str]:
    if native.fsxattr(fd).xflags & _XFLAG_REALTIME:
        yield "realtime"
    geometry = native.xfs_geometry(fd)
    if geometry is None or geometry.flags & ~_KNOWN_GEOMETRY:
        yield "geometry-unknown"
    if _always_cow():
        yield "always-cow"


def _always_cow() -> bool:
    """A knob of kernels with CONFIG_XFS_DEBUG alone (fs/xfs/xfs_sysfs.c)."""
    try:
        return Path("/sys/fs/xfs/debug/always_cow").read_text().strip() not in ("", "0")
    except OSError:
        return False


def _is_swap_file(target: Target) -> bool:
    """vfs_fallocate (fs/open.c) answers ETXTBSY for a swap file before it finds the range, which
    lies beyond the largest offset, to be too large. It wants a writable descriptor; without one,
    the table of swap files is compared, of those on this file system."""
    if not target.writable:
        return any(_is_same(path, target) for path in _swap_files())
    try:
        native.fallocate(target.fd, 1, 2**63 - 1, 1)  # FALLOC_FL_KEEP_SIZE
    except OSError as error:
        if error.errno not in (errno.ETXTBSY, errno.EFBIG, errno.EPERM, errno.EOPNOTSUPP):
            raise
        return error.errno == errno.ETXTBSY
    return False


def _swap_files() -> list[bytes]:
    """proc_swaps(5): name and type of each; octal escapes as in mountinfo."""
    try:
        lines = Path("/proc/swaps").read_bytes().split(b"\n")[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [mountinfo.unescaped(row[0]) for row in rows if row[1:2] == [b"file"]]


def _is_same(path: bytes, target: Target) -> bool:
    if filesystem.place_at(os.fsdecode(path)) != target.file.device:
        return False  # and looking at another file system may block
    try:
        st = os.stat(path)
    except OSError:
        return False
    return (st.st_dev, st.st_ino) == (target.file.device, target.file.inode)
