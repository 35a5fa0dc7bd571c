"""Operations of the plain file API. Each runs in the second process, on `scene.fd` or its path."""

from __future__ import annotations

import mmap
import os

from sealsvc.doctor import syscalls
from sealsvc.doctor.scene import CHUNK, LENGTH, SIZE, START, Scene

DATA = b"doctor! " * (CHUNK // 8)


def open_readonly(scene: Scene) -> None:
    os.open(scene.path, os.O_RDONLY)


def open_readwrite(scene: Scene) -> None:
    os.open(scene.path, os.O_RDWR)


def open_truncate(scene: Scene) -> None:
    os.open(scene.path, os.O_WRONLY | os.O_TRUNC)


def open_by_handle(scene: Scene) -> None:
    directory = os.open(scene.directory, os.O_RDONLY | os.O_DIRECTORY)
    syscalls.open_by_handle(directory, scene.path, os.O_RDWR)


def execute(scene: Scene) -> None:
    pid = os.posix_spawn(scene.path, [scene.path], {})
    os.waitpid(pid, 0)


def truncate_into(scene: Scene) -> None:
    os.truncate(scene.path, START + CHUNK)


def truncate_below(scene: Scene) -> None:
    os.truncate(scene.path, 0)


def truncate_beyond(scene: Scene) -> None:
    os.truncate(scene.path, SIZE + CHUNK)


def ftruncate_into(scene: Scene) -> None:
    os.ftruncate(scene.fd, START + CHUNK)


def ftruncate_beyond(scene: Scene) -> None:
    os.ftruncate(scene.fd, SIZE + CHUNK)


def fallocate_plain(scene: Scene) -> None:
    syscalls.fallocate(scene.fd, 0, START, CHUNK)


def fallocate_keep_size(scene: Scene) -> None:
    syscalls.fallocate(scene.fd, syscalls.KEEP_SIZE, SIZE, CHUNK)


def punch_hole(scene: Scene) -> None:
    syscalls.fallocate(scene.fd, syscalls.PUNCH_HOLE | syscalls.KEEP_SIZE, START, CHUNK)


def collapse_range(scene: Scene) -> None:
    syscalls.fallocate(scene.fd, syscalls.COLLAPSE_RANGE, 0, CHUNK)


def insert_range(scene: Scene) -> None:
    syscalls.fallocate(scene.fd, syscalls.INSERT_RANGE, START, CHUNK)


def zero_range(scene: Scene) -> None:
    syscalls.fallocate(scene.fd, syscalls.ZERO_RANGE, START, CHUNK)


def unshare_range(scene: Scene) -> None:
    syscalls.fallocate(scene.fd, syscalls.UNSHARE_RANGE, START, CHUNK)


def write_zeroes(scene: Scene) -> None:
    syscalls.fallocate(scene.fd, syscalls.WRITE_ZEROES, START, CHUNK)


def read(scene: Scene) -> None:
    os.pread(scene.fd, CHUNK, START)


def write(scene: Scene) -> None:
    os.pwrite(scene.fd, DATA, START)


def write_extending(scene: Scene) -> None:
    os.pwrite(scene.fd, DATA, SIZE - CHUNK // 2)


def write_direct(scene: Scene) -> None:
    os.pwrite(scene.fd, syscalls.aligned(DATA), START)


def write_vector(scene: Scene) -> None:
    os.pwritev(scene.fd, [DATA, DATA], START)


def write_atomic(scene: Scene) -> None:
    syscalls.write_atomic(scene.fd, [syscalls.aligned(DATA[: CHUNK // 4])], START)


def splice_into(scene: Scene) -> None:
    readable, writable = os.pipe()
    os.write(writable, DATA[:4096])
    os.splice(readable, scene.fd, 4096, offset_dst=START)


def sendfile_into(scene: Scene) -> None:
    os.lseek(scene.fd, START, os.SEEK_SET)
    os.sendfile(scene.fd, scene.donor, 0, CHUNK)


def map_file(scene: Scene) -> None:
    """Its descriptor is closed, as by programs that only keep the mapping."""
    scene.mapping = mmap.mmap(scene.fd, os.fstat(scene.fd).st_size, mmap.MAP_SHARED)
    os.close(scene.opened)
    scene.opened = -1


def mapped(scene: Scene) -> mmap.mmap:
    if scene.mapping is None:
        raise AssertionError("the operation has no `begin` that maps the file")
    return scene.mapping


def store(scene: Scene) -> None:
    mapping = mapped(scene)
    mapping[START : START + len(DATA)] = DATA
    mapping.flush()


def store_into_hole(scene: Scene) -> None:
    mapping = mapped(scene)
    mapping[SIZE : SIZE + len(DATA)] = DATA
    mapping.flush()


def remove_mapped(scene: Scene) -> None:
    syscalls.madvise_remove(mapped(scene), START, CHUNK)


def unlink(scene: Scene) -> None:
    os.unlink(scene.path)


def unlink_and_close(scene: Scene) -> None:
    """The last close by anybody but the holder, whose own descriptor keeps the inode."""
    os.pread(scene.fd, 1, 0)
    os.unlink(scene.path)
    os.close(scene.opened)


def rename(scene: Scene) -> None:
    os.rename(scene.path, scene.path + ".moved")


def rename_over(scene: Scene) -> None:
    os.rename(scene.donor_path, scene.path)


def link(scene: Scene) -> None:
    os.link(scene.path, scene.path + ".link")


def change_flags(scene: Scene) -> None:
    syscalls.toggle_flag(scene.fd, syscalls.NOATIME_FLAG)


def set_attributes(scene: Scene) -> None:
    noatime = 0x40  # FS_XFLAG_NOATIME
    syscalls.file_setattr(scene.path, noatime)


def copy_source(scene: Scene) -> None:
    _copy(scene.fd, scene.donor)


def copy_destination(scene: Scene) -> None:
    _copy(scene.donor, scene.fd)


def _copy(source: int, destination: int) -> None:
    os.copy_file_range(source, destination, LENGTH, START, START)
