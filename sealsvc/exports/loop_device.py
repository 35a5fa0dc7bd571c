"""A loop device on a block device: what dm-linear is put on where the block device itself is
claimed by the file system that is mounted from it (dm answers EBUSY)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys

# include/uapi/linux/loop.h: struct loop_config since v5.8
_CTL_GET_FREE, _CONFIGURE, _CLR_FD, _GET_STATUS = 0x4C82, 0x4C0A, 0x4C01, 0x4C05
_READ_ONLY, _DIRECT_IO = 1, 16
_BLKSSZGET = 0x1268  # include/uapi/linux/fs.h
_INFO = struct.Struct("=QQQQQ IIII 64s64s32s 2Q")
_CONFIG = struct.Struct(f"=II{_INFO.size}s8Q")
_TRIES = 20


def attach(node: str, *, read_only: bool) -> str:
    """A loop device over the whole of the block device `node`, by direct I/O: its node."""
    mode = os.O_RDONLY if read_only else os.O_RDWR
    backing = os.open(node, mode | os.O_DIRECT | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _DIRECT_IO | (_READ_ONLY if read_only else 0)
        info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, node.encode()[:63], b"", b"", 0, 0)
        # Direct I/O takes blocks of the device's own size.
        block_size = struct.unpack("=i", fcntl.ioctl(backing, _BLKSSZGET, bytes(4)))[0]
        config = _CONFIG.pack(backing, block_size, info, *[0] * 8)
        for _ in range(_TRIES):
            name = f"/dev/loop{fcntl.ioctl(control, _CTL_GET_FREE)}"
            loop = os.open(name, mode | os.O_CLOEXEC)
            try:
                fcntl.ioctl(loop, _CONFIGURE, config)
                return name
            except OSError as error:
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise OSError(error.errno, os.strerror(error.errno or 0), name) from None
            finally:
                os.close(loop)
        raise OSError(errno.EBUSY, "no free loop device was to be had", node)
    finally:
        os.close(control)
        os.close(backing)


def attach_apart(node: str, *, read_only: bool) -> str:
    """The same in another process. The bpf enforcer refuses LOOP_CONFIGURE, which names its file in
    user memory, to every process that has a sealed file open, as an export's holder has."""
    options = ["--read-only"] if read_only else []
    done = subprocess.run(
        [sys.executable, "-m", "sealsvc.exports.loop_device", node, *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(done.returncode, os.strerror(done.returncode), node)
    return done.stdout.strip()


def detach(name: str, backing: str) -> None:
    """Unless the loop device `name` is somebody else's by now, or gone: it is told by the device
    `backing` (MAJOR:MINOR) that it is on."""
    try:
        loop = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        info = fcntl.ioctl(loop, _GET_STATUS, bytes(_INFO.size))
        # lo_rdevice is huge_encode_dev() of the backing block device.
        device = _INFO.unpack(info)[2]
        if f"{device >> 8 & 0xFFF}:{device & 0xFF | device >> 12 & ~0xFF}" == backing:
            fcntl.ioctl(loop, _CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:  # not attached
            raise
    finally:
        os.close(loop)


def main() -> int:
    """For attach_apart(): the exit status is an errno."""
    try:
        print(attach(sys.argv[1], read_only="--read-only" in sys.argv[2:]))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


if __name__ == "__main__":
    sys.exit(main())
