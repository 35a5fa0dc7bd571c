"""The C core, typed: the only importer of the cffi module.

Failures are OSErrors with the kernel's errno and text, and the call that failed as `filename`.
cffi releases the GIL around every call.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from _sealsvc_native import ffi as ffi
from _sealsvc_native import lib as lib

from sealsvc.core.extents import EXTENT_SHARED as EXTENT_SHARED
from sealsvc.core.extents import ExtentMap
from sealsvc.core.model import ByteRange

WHOLE = ByteRange(0, 2**64 - 1)
T = TypeVar("T")


def _check(result: int, call: str) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), call)
    return result


# Extent maps


def read_extents(fd: int, span: ByteRange | None, *, sync: bool = False) -> ExtentMap:
    """The extents that overlap the span (None: the whole file), whole: rows of core/extents.py.
    `sync` writes dirty data back first."""
    span = span or WHOLE
    out = ffi.new("struct seal_extent **")
    count = _check(lib.seal_extents_read(fd, span.offset, span.length, sync, out), "FS_IOC_FIEMAP")
    return take_rows(out[0], count)


def take_rows(extents: Any, count: int) -> ExtentMap:
    """A copy of `count` structures seal_extent as rows of core/extents.py; they are freed."""
    try:
        return rows_of(extents, count)
    finally:
        lib.seal_extents_free(extents)


def rows_of(extents: Any, count: int) -> ExtentMap:
    """An array of `count` structures of four uint64 as rows of core/extents.py: a copy."""
    rows = np.frombuffer(bytearray(ffi.buffer(extents, 32 * count)), dtype=np.uint64)
    return rows.reshape(-1, 4)


# Files


@dataclass(frozen=True, slots=True)
class FsXattr:
    """FS_IOC_FSGETXATTR; `extsize` and `cowextsize` in bytes."""

    xflags: int
    extsize: int
    nextents: int
    projid: int
    cowextsize: int


@dataclass(frozen=True, slots=True)
class XfsGeometry:
    """`block_size` in bytes, `rt_extent_blocks` in blocks, `flags` are XFS_FSOP_GEOM_FLAGS_*."""

    block_size: int
    rt_extent_blocks: int
    reflink: bool
    flags: int = 0
    uuid: bytes = bytes(16)


def open_beneath(directory: int, path: str, flags: int) -> int:
    """A descriptor of `path` below `directory`, by no symbolic link (ELOOP) and no way out
    (EXDEV)."""
    fd: int = lib.seal_open_beneath(directory, os.fsencode(path), flags)
    return _check(fd, "open")


def generation(fd: int) -> int | None:
    """None where inodes have none."""
    out = ffi.new("uint32_t *")
    result: int = lib.seal_generation(fd, out)
    if result == -errno.ENOTTY:
        return None
    _check(result, "FS_IOC_GETVERSION")
    return int(out[0])


def fsxattr(fd: int) -> FsXattr:
    out = ffi.new("struct seal_xattr *")
    _check(lib.seal_fsxattr(fd, out), "FS_IOC_FSGETXATTR")
    return FsXattr(out.xflags, out.extsize, out.nextents, out.projid, out.cowextsize)


def xfs_geometry(fd: int) -> XfsGeometry | None:
    """None when the file is not on XFS."""
    out = ffi.new("struct seal_xfs_geometry *")
    result: int = lib.seal_xfs_geometry(fd, out)
    if result == -errno.ENOTTY:
        return None
    _check(result, "XFS_IOC_FSGEOMETRY")
    return XfsGeometry(
        out.block_size, out.rt_extent_blocks, bool(out.reflink), out.flags, bytes(out.uuid)
    )


@dataclass(frozen=True)
class XfsBlocks:
    """What an inode has at one moment: `bytes` of all its blocks, of which at least `metadata` and
    at most `metadata_most` are the extent tree's and extended attributes'; its ctime, `changed`,
    in ns."""

    bytes: int
    metadata: int
    metadata_most: int
    changed: int


def xfs_blocks(fd: int) -> XfsBlocks:
    """Raises OSError: EPERM without CAP_SYS_ADMIN, and on a mount with mapped ids."""
    out = ffi.new("struct seal_xfs_blocks *")
    _check(lib.seal_xfs_blocks(fd, out), "XFS_IOC_FSBULKSTAT_SINGLE")
    return XfsBlocks(out.bytes, out.metadata, out.metadata_most, out.changed)


def inode_flags(fd: int) -> int:
    """FS_*_FL of FS_IOC_GETFLAGS."""
    out = ffi.new("uint32_t *")
    _check(lib.seal_inode_flags(fd, out), "FS_IOC_GETFLAGS")
    return int(out[0])


def filesystem_magic(fd: int) -> int:
    """The file system's magic number (linux/magic.h)."""
    out = ffi.new("uint64_t *")
    _check(lib.seal_filesystem_magic(fd, out), "fstatfs")
    return int(out[0])


def statx_attributes(fd: int) -> int:
    """STATX_ATTR_* that are set."""
    out = ffi.new("uint64_t *")
    _check(lib.seal_statx_attributes(fd, out), "statx")
    return int(out[0])


# Mount namespaces


@dataclass(frozen=True, slots=True)
class MountNamespace:
    """By its inode number; `task` is in it, and `whole` where that one sees all of its mounts."""

    id: int
    task: int
    whole: bool


def mount_namespaces() -> list[MountNamespace]:
    """Those that some task is in."""

    return _listed(
        "struct seal_mount_namespace **",
        lib.seal_mount_namespaces,
        "/proc",
        lambda row: MountNamespace(row.id, row.task, bool(row.whole)),
    )


def overlay_upper(fd: int) -> tuple[bytes, int] | None:
    """UUID of the file system, and inode number, of the upper layer's root of the overlay whose
    root is `fd`; None: the overlay does not tell."""
    out = ffi.new("struct seal_upper *")
    if lib.seal_overlay_upper(fd, out) < 0:
        return None
    return bytes(out.uuid), int(out.inode)


def birth_time(fd: int) -> tuple[int, int] | None:
    """When the inode was created, in seconds and nanoseconds; None: not recorded."""
    out = ffi.new("struct seal_birth *")
    if lib.seal_birth_time(fd, out) < 0:
        return None
    return int(out.seconds), int(out.nanoseconds)


def filesystem_uuid(fd: int) -> bytes | None:
    out = ffi.new("uint8_t[16]")
    return None if lib.seal_filesystem_uuid(fd, out) < 0 else bytes(out)


# Changing files


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """With the modes that os.posix_fallocate does not have: FALLOC_FL_*."""
    _check(lib.seal_fallocate(fd, mode, offset, length), "fallocate")


def allocate(fd: int, offset: int, length: int) -> None:
    """fallocate(2) that keeps the size, and does not exceed quotas as root may."""
    _check(lib.seal_allocate(fd, offset, length), "fallocate")


def quota_room(fd: int, type: int, id: int) -> int | None:
    """Bytes that user, group or project (type 0, 1, 2) `id` may still allocate on the file system
    of `fd`; None: there is no limit."""
    out = ffi.new("uint64_t *")
    _check(lib.seal_quota_room(fd, type, id, out), "quotactl_fd")
    return None if out[0] == 2**64 - 1 else int(out[0])


def xfs_free_preallocations(fd: int) -> None:
    """XFS_IOC_FREE_EOFBLOCKS; native/include/sealsvc/files.h says which files it leaves out."""
    _check(lib.seal_xfs_free_preallocations(fd), "XFS_IOC_FREE_EOFBLOCKS")


def sync_filesystem(fd: int) -> None:
    _check(lib.seal_sync_filesystem(fd), "syncfs")


def cached_pages(fd: int, offset: int = 0, length: int = 0) -> int | None:
    """Pages of `length` bytes (0: to the end) from `offset` in the page cache; None: the kernel
    does not tell (before 6.5)."""
    count: int = lib.seal_cached_pages(fd, offset, length)
    return None if count < 0 else count


def dirty_pages(fd: int) -> int:
    """Dirty pages of the file and those under writeback; 0 where the kernel cannot tell."""
    count: int = lib.seal_dirty_pages(fd)
    return 0 if count in (-errno.ENOSYS, -errno.EOPNOTSUPP) else _check(count, "cachestat")


def set_extsize(fd: int, size: int) -> None:
    """The extent size hint in bytes (0: none). XFS takes it while the file has no extents; ext4
    takes it and forgets it."""
    _check(lib.seal_set_extsize(fd, size), "FS_IOC_FSSETXATTR")


def populate_write(fd: int, offset: int, length: int) -> None:
    """Have every page of the range written back without changing it; offset in whole pages."""
    _check(lib.seal_populate_write(fd, offset, length), "madvise(MADV_POPULATE_WRITE)")


# Who else has hold of a file


@dataclass(frozen=True, slots=True)
class Mapping:
    """`offset` and `length` are bytes of the file, cut to the range that was asked for; `address`
    is where they are mapped in the process. With `error`, an errno, nothing is known of the process
    but its pid: it may map all of the range."""

    pid: int
    shared: bool
    writable: bool
    address: int
    offset: int
    length: int
    error: int = 0


@dataclass(frozen=True, slots=True)
class Opener:
    """`fd` is -1 for a process that maps the file and has no descriptor of it left; `flags` are
    those of open(2)."""

    pid: int
    fd: int
    flags: int


def lease_probe(fd: int, type: int) -> bool:
    """Take a lease of `type` (fcntl.F_RDLCK or F_WRLCK) for a moment: False when other openers
    stand against it. SIGIO must be ignored."""
    return bool(_check(lib.seal_lease_probe(fd, type), "F_SETLEASE"))


TOKEN_BASE = int(lib.SEAL_TOKEN_BASE)


def token_set(fd: int, byte: int) -> int:
    """Lock `byte`, or another one where somebody else has locked that, for the description of `fd`,
    and return it: the token ends with the description. Raises BlockingIOError while somebody has a
    write lock on all that lies behind the file's end."""
    at = ffi.new("uint64_t *", byte)
    _check(lib.seal_token_set(fd, at), "F_OFD_SETLK")
    return int(at[0])


def token_clear(fd: int, byte: int) -> None:
    _check(lib.seal_token_clear(fd, byte), "F_OFD_SETLK")


def token_held(fd: int, byte: int) -> bool:
    """Does a description of the file, other than that of `fd`, have the token?"""
    return bool(_check(lib.seal_token_held(fd, byte), "F_OFD_GETLK"))


def mappings(pid: int, device: int, inode: int, span: ByteRange) -> list[Mapping]:
    """Mappings of the span in the process (ProcessLookupError: there is none), or, with pid 0, in
    every process. One that cannot be looked into has a row with `error`. Raises BlockingIOError
    when too many keep their maps from being read."""

    def call(out: Any) -> int:
        return int(lib.seal_mappings(pid, device, inode, span.offset, span.length, out))

    return _listed(
        "struct seal_mapping **",
        call,
        f"/proc/{pid or '*'}/maps",
        lambda row: Mapping(
            row.pid,
            bool(row.shared),
            bool(row.writable),
            row.address,
            row.offset,
            row.length,
            -row.error,
        ),
    )


@dataclass(frozen=True, slots=True)
class Failed:
    """Where a mapping is not as wanted: `check` is one of CHECKS. `address` is 0 where nothing is
    mapped; what `expected` and `found` are, native/include/sealsvc/validate.h says."""

    check: str
    address: int
    offset: int
    expected: int
    found: int
    found_device: int


@dataclass(frozen=True, slots=True)
class Validation:
    """`pages`, `present` and `placed` (those whose place is proven) are in pages of the system,
    `huge` in pages of 2 MiB; `entries` were read from pagemap. `scanned`: by PAGEMAP_SCAN, without
    which huge pages cannot be told; `hidden`: the kernel does not tell us places."""

    areas: int
    pages: int
    present: int
    huge: int
    placed: int
    entries: int
    scanned: bool
    hidden: bool
    failed: Failed | None


CHECKS = {
    lib.SEAL_CHECK_SHARED: "shared",
    lib.SEAL_CHECK_INODE: "inode",
    lib.SEAL_CHECK_COVERAGE: "coverage",
    lib.SEAL_CHECK_OFFSET: "offset",
    lib.SEAL_CHECK_SYNC: "map-sync",
    lib.SEAL_CHECK_PRESENT: "present",
    lib.SEAL_CHECK_PLACE: "pfn",
    lib.SEAL_CHECK_HUGE: "huge",
}


def validate_mapping(
    pid: int,
    device: int,
    inode: int,
    span: ByteRange,
    *,
    address: int | None = None,
    sync: bool = False,
    present: bool = False,
    huge: bool = False,
    map: ExtentMap | None = None,
    base: int = 0,
    read_entries: bool = False,
) -> Validation:
    """Is the span (whole pages) mapped in the process, at `address` or anywhere, as the keywords
    want it? With a `map` (and the physical `base` of its device) the place of each page that is
    there is compared with it. BlockingIOError: the process keeps changing its mappings."""
    want = (
        (address is not None and lib.SEAL_WANT_ADDRESS)
        | (sync and lib.SEAL_WANT_SYNC)
        | (present and lib.SEAL_WANT_PRESENT)
        | (huge and lib.SEAL_WANT_HUGE)
        | (map is not None and lib.SEAL_WANT_PLACE)
        | (read_entries and lib.SEAL_READ_ENTRIES)
    )
    rows = np.ascontiguousarray(map if map is not None else np.empty((0, 4)), dtype=np.uint64)
    extents = ffi.from_buffer("struct seal_extent[]", rows)  # the question only points there
    question = ffi.new(
        "struct seal_mapping_question *",
        {
            "pid": pid,
            "want": want,
            "device": device,
            "inode": inode,
            "start": span.offset,
            "length": span.length,
            "address": address or 0,
            "extents": extents,
            "extent_count": len(rows),
            "base": base,
        },
    )
    out = ffi.new("struct seal_mapping_answer *")
    _check(lib.seal_mapping_validate(question, out), f"/proc/{pid}/pagemap")
    failed = (
        Failed(
            CHECKS[out.check], out.address, out.offset, out.expected, out.found, out.found_device
        )
        if out.check
        else None
    )
    return Validation(
        out.areas,
        out.pages,
        out.present,
        out.huge,
        out.placed,
        out.entries,
        bool(out.scanned),
        bool(out.hidden),
        failed,
    )


def openers(device: int, inode: int, except_pid: int = 0) -> list[Opener]:
    """Who has the file open or mapped, as far as it can be named: no proof that nobody does."""

    def call(out: Any) -> int:
        return int(lib.seal_openers(device, inode, except_pid, out))

    return _listed(
        "struct seal_opener **", call, "/proc/*/fd", lambda row: Opener(row.pid, row.fd, row.flags)
    )


def _listed(kind: str, call: Callable[[Any], int], name: str, made: Callable[[Any], T]) -> list[T]:
    """What is made of the rows that a call allocates and counts."""
    out = ffi.new(kind)
    try:
        return [made(out[0][i]) for i in range(_check(call(out), name))]
    finally:
        lib.seal_rows_free(out[0])


def same_description(pid_a: int, fd_a: int, pid_b: int, fd_b: int) -> bool:
    return bool(_check(lib.seal_same_description(pid_a, fd_a, pid_b, fd_b), "kcmp"))


# Processes


def pidfd_open(pid: int) -> int:
    return _check(lib.seal_pidfd_open(pid), "pidfd_open")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate of the other process's descriptor, on the same description."""
    return _check(lib.seal_pidfd_getfd(pidfd, fd), "pidfd_getfd")
