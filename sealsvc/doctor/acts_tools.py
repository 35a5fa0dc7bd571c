"""The real tools, and operations on whole file systems and the devices beside them."""

from __future__ import annotations

import errno
import os
import re
import subprocess

from sealsvc.doctor import syscalls
from sealsvc.doctor.acts_file import DATA
from sealsvc.doctor.scene import CHUNK, START, Scene

# A tool tells its errno only in words, and xfs_fsr exits with 0 all the same.
_TOLD = (
    errno.ETXTBSY,
    errno.EBUSY,
    errno.EPERM,
    errno.EACCES,
    errno.EAGAIN,
    errno.EOPNOTSUPP,
    errno.EINVAL,
    errno.ENOTTY,
    errno.EROFS,
    errno.ENOSPC,
)
_GROWTH = 64 * 1024 * 1024
_TRIMMED = 64 * 1024 * 1024  # a whole disk would take minutes


class ToolFailed(Exception):
    """The tool exited with a failure that names no errno."""


def run(*command: str) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    said = (done.stderr + done.stdout).strip()
    for code in _TOLD:
        if os.strerror(code).lower() in said.lower():
            raise OSError(code, said[-200:])
    if done.returncode:
        raise ToolFailed(f"{command[0]} exited with {done.returncode}: {said[-200:]}")
    return done.stdout


def cp_reflink_source(scene: Scene) -> None:
    run("cp", "--reflink=always", scene.path, scene.beside("copy"))


def cp_reflink_over(scene: Scene) -> None:
    run("cp", "--reflink=always", scene.donor_path, scene.path)


def cp_over(scene: Scene) -> None:
    run("cp", "--reflink=never", scene.donor_path, scene.path)


def fallocate_tool(scene: Scene) -> None:
    run("fallocate", "--punch-hole", "-o", str(START), "-l", str(CHUNK), scene.path)


def truncate_tool(scene: Scene) -> None:
    run("truncate", "-s", str(START + CHUNK), scene.path)


def mv_tool(scene: Scene) -> None:
    run("mv", scene.path, scene.path + ".moved")


def rm_tool(scene: Scene) -> None:
    run("rm", "-f", scene.path)


def fstrim_tool(scene: Scene) -> None:
    run("fstrim", "--length", str(_TRIMMED), scene.mount)


def trim(scene: Scene) -> None:
    directory = os.open(scene.directory, os.O_RDONLY | os.O_DIRECTORY)
    syscalls.trim(directory, 0, _TRIMMED)


def e4defrag(scene: Scene) -> None:
    """e4defrag exits with 0 and says "Success" or how many of the files it failed on."""
    said = run("e4defrag", "-v", scene.path)
    failed = re.search(r"Failure:\s*\[ (\d+)/", said)
    if failed and int(failed.group(1)):
        raise ToolFailed(f"e4defrag: {said.strip()[-200:]}")


def xfs_fsr(scene: Scene) -> None:
    run("xfs_fsr", "-v", scene.path)


def snapshot(scene: Scene) -> None:
    """The scratch directory is a subvolume of its own on btrfs, so that only it is shared."""
    subvolume = os.path.dirname(scene.directory)
    run("btrfs", "subvolume", "snapshot", subvolume, scene.beside("snapshot"))
    run("btrfs", "subvolume", "delete", scene.beside("snapshot"))


def balance(scene: Scene) -> None:
    run("btrfs", "balance", "start", "--full-balance", scene.mount)


def freeze(scene: Scene) -> None:
    """Frozen for a moment; the doctor thaws as well, should this process not live to do it."""
    mount = os.open(scene.mount, os.O_RDONLY | os.O_DIRECTORY)
    syscalls.freeze(mount)
    syscalls.thaw(mount)


def remount_readonly(scene: Scene) -> None:
    syscalls.mount("none", scene.mount, "", syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
    syscalls.mount("none", scene.mount, "", syscalls.MS_REMOUNT)


def unmount(scene: Scene) -> None:
    syscalls.umount(scene.mount)


def _loop_of(scene: Scene) -> str:
    device = os.stat(scene.mount).st_dev
    if scene.filesystem == "btrfs":  # its st_dev is anonymous
        return os.path.basename(run("findmnt", "-no", "SOURCE", scene.mount).strip())
    link = os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return os.path.basename(link)


def grow(scene: Scene) -> None:
    """Only ever a file system on a loop device: its backing file is grown first."""
    loop = _loop_of(scene)
    with open(f"/sys/block/{loop}/loop/backing_file") as file:
        backing = file.read().rstrip("\n")
    os.truncate(backing, os.stat(backing).st_size + _GROWTH)
    device = os.open(f"/dev/{loop}", os.O_RDONLY)
    syscalls.reread_loop_size(device)
    os.close(device)
    if scene.filesystem == "ext4":
        run("resize2fs", f"/dev/{loop}")
    elif scene.filesystem == "xfs":
        run("xfs_growfs", "-d", scene.mount)
    else:
        run("btrfs", "filesystem", "resize", "max", scene.mount)


def shrink(scene: Scene) -> None:
    statistics = os.statvfs(scene.mount)
    less = 16 * 1024 * 1024
    if scene.filesystem == "ext4":
        total = statistics.f_blocks * statistics.f_frsize
        run("resize2fs", f"/dev/{_loop_of(scene)}", f"{(total - less) // 1024}K")
    elif scene.filesystem == "xfs":
        blocks = re.search(r"^data .*?blocks=(\d+)", run("xfs_info", scene.mount), re.M)
        if not blocks:
            raise ToolFailed("xfs_info names no size")
        fewer = int(blocks.group(1)) - less // statistics.f_bsize
        run("xfs_growfs", "-D", str(fewer), scene.mount)
    else:
        run("btrfs", "filesystem", "resize", f"-{less}", scene.mount)


def attach_loop(scene: Scene) -> None:
    scene.loop = syscalls.attach_loop(scene.fd)


def loop_discard(scene: Scene) -> None:
    syscalls.discard(scene.loop, START, CHUNK)


def loop_write(scene: Scene) -> None:
    os.pwrite(scene.loop, syscalls.aligned(DATA), START)


def copy_up(scene: Scene) -> None:
    """`path` leads through an overlay's lower layer: opening for writing copies the file up, by
    cloning it where the file system can."""
    os.open(scene.path, os.O_RDWR)
