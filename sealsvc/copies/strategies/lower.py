"""A clone below: the file system lies in the image of a loop device, and the image's file system
can share blocks. What the upper file system sees as a copy is a FICLONERANGE within the image."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

from sealsvc.copies import calls
from sealsvc.copies.calls import Copied, Span
from sealsvc.copies.ends import Ends
from sealsvc.copies.page_cache import drop_range
from sealsvc.copies.places import Move, moves
from sealsvc.copies.stack import Stack, Unresolved, node_of, sysfs_of
from sealsvc.copies.strategies.interface import UNSEALED, aligned
from sealsvc.linux import filesystem, mountinfo

_GET_STATUS64 = 0x4C05  # struct loop_info64 (include/uapi/linux/loop.h): lo_device, lo_inode first
_STATUS64 = struct.Struct("=QQQQQ192x")  # ..., lo_rdevice, lo_offset, lo_sizelimit
_SHARES = {"btrfs", "nfs", "nfs4", "bcachefs", "ocfs2"}
_TO_NEXT = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY}


@dataclass(frozen=True, slots=True)
class Image:
    """A loop device's backing file, open for writing, and the block device itself."""

    fd: int
    device_fd: int
    offset: int
    block: int


class Lower:
    name = "lower"
    instant = True
    offload = True
    holes = False
    most = 1 << 30

    def __init__(self) -> None:
        self._stack = Stack()
        self._images: dict[int, Image] = {}

    def refusal(self, ends: Ends) -> str:
        if not ends.pinned:  # first: looking at what is below takes longer than a clone
            return UNSEALED
        try:
            for end in (ends.source, ends.destination):
                for leaf in self._stack.leaves(end.filesystem.device):
                    self._image(leaf)
        except Unresolved as reason:
            return str(reason)
        except OSError as error:
            return f"the image below cannot be used: {error.strerror}"
        return ""

    def fits(self, ends: Ends, span: Span) -> Span | None:
        """What begins and ends, in both images, at whole blocks of the file system below."""
        try:
            found = moves(ends, span, self._stack)
            if found is None or (first := next(found, None)) is None:
                return None
            block = self._image(first.destination_device).block
            at = self._places(first)
            head = -at[0] % block
            core = aligned(Span(at[0], at[1], span.length), block)
            if core is None:
                return None
            part = span.part(head, head + core.length)
            # Over stripes every piece must be whole blocks, too.
            inner = moves(ends, part, self._stack)
            pieces = ((*self._places(move), move.length) for move in inner or ())
            return part if all(not n % block for piece in pieces for n in piece) else None
        except Unresolved:
            return None

    def copy(self, ends: Ends, span: Span) -> Copied:
        done = 0
        try:
            for move in moves(ends, span, self._stack) or ():
                result = self._clone(move)
                done += result.bytes
                if result.error or result.bytes < move.length:
                    return Copied(done, result.error)
        except Unresolved:
            return Copied(done, errno.EINVAL)
        return Copied(done, 0)

    def flush(self) -> None:
        for image in self._images.values():
            os.fsync(image.fd)

    def close(self) -> None:
        for image in self._images.values():
            os.close(image.fd)
            os.close(image.device_fd)
        self._images.clear()

    def _clone(self, move: Move) -> Copied:
        source = self._image(move.source_device)
        destination = self._image(move.destination_device)
        below = Span(*self._places(move), move.length)
        result = calls.clone(source.fd, destination.fd, below)
        if result.error in _TO_NEXT:
            # NFS has both; what a file system cannot clone, a server may still copy by itself.
            result = calls.copy_file_range(source.fd, destination.fd, below)
        # Who read the device itself has its blocks in the device's page cache.
        drop_range(destination.device_fd, move.destination, move.length)
        return result

    def _places(self, move: Move) -> tuple[int, int]:
        """In the two images."""
        source, destination = map(self._image, (move.source_device, move.destination_device))
        return move.source + source.offset, move.destination + destination.offset

    def _image(self, device: int) -> Image:
        if device not in self._images:
            with calls.own_rights():
                self._images[device] = _open_image(device)
        return self._images[device]


def _open_image(device: int) -> Image:
    """Raises Unresolved, OSError."""
    loop = sysfs_of(device) / "loop"
    if not loop.is_dir():
        raise Unresolved(f"{node_of(device)} is not a loop device")
    path = (loop / "backing_file").read_bytes().rstrip(b"\n")
    device_fd = os.open(node_of(device), os.O_RDONLY | os.O_CLOEXEC)
    try:
        told = bytearray(_STATUS64.size)
        fcntl.ioctl(device_fd, _GET_STATUS64, told)
        _, inode, _, offset, _ = _STATUS64.unpack(told)
        fd = _open_backing(path, inode)
        return Image(fd, device_fd, offset, os.fstatvfs(fd).f_bsize)
    except BaseException:
        os.close(device_fd)
        raise


def _open_backing(path: bytes, inode: int) -> int:
    """The path in sysfs is a text of some view: the inode tells whether it is the file."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_ino != inode:
            raise Unresolved(f"the backing file is not at {os.fsdecode(path)} any more")
        below = filesystem.described(fd, mountinfo.mount_of(fd, mountinfo.own().read()))
        if not (below.reflink or below.type in _SHARES):
            raise Unresolved(f"the file system of the image ({below.type}) cannot share blocks")
        return fd
    except BaseException:
        os.close(fd)
        raise
