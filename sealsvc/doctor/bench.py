"""The scratch directory: fresh files, the routes to them, and an end that leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sealsvc.doctor import syscalls
from sealsvc.doctor.acts_tools import run
from sealsvc.doctor.operations import BTRFS, Operation, Route
from sealsvc.doctor.scene import CHUNK, SIZE, TAIL, Scene
from sealsvc.linux import mountinfo
from sealsvc.linux.mountinfo import Mount

_MOUNTED = (Route.BIND, Route.OVERLAY, Route.LOWER)
_NOCOW = 0x00800000  # FS_NOCOW_FL; on btrfs it holds only when set on an empty file
# A script, so that execve succeeds; the same in every file, so that any two can be deduplicated.
_CONTENT = b"#!/bin/true\n" + bytes(SIZE - 12)


@dataclass
class Specimen:
    """One fresh file. `fd` is the doctor's own descriptor: the holder's, through which the map is
    read to the end. `path` is the file's own, `scene.path` leads through the route."""

    path: str
    fd: int
    scene: Scene


def _create(path: str, nocow: bool, stack: ExitStack) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755)
    stack.callback(os.close, fd)
    if nocow:
        syscalls.set_flag(fd, _NOCOW)
    return fd


def _fill(fds: tuple[int, int]) -> None:
    """Allocate by turns, so that the extents of each lie apart and a defragmenter has work; both
    end up in as many pieces, as XFS SWAPEXT demands."""
    for offset in range(0, SIZE, CHUNK):
        for fd in fds:
            syscalls.fallocate(fd, 0, offset, CHUNK)
    for fd in fds:
        os.pwrite(fd, _CONTENT, 0)


class Bench:
    """A scratch directory below `path`, and everything that is made in it."""

    def __init__(self, path: str, stack: ExitStack) -> None:
        self.mount = self._mount_of(path)
        self._numbers = itertools.count()
        self.directory = tempfile.mkdtemp(prefix=".sealsvc-doctor-", dir=path)
        stack.callback(self._remove)
        if self.filesystem == BTRFS:
            self._become_subvolume()

    @staticmethod
    def _mount_of(path: str) -> Mount:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            mount = mountinfo.mount_of(fd, mountinfo.own().read())
            assert mount is not None, "it was opened by its path, in this mount namespace"
            return mount
        finally:
            os.close(fd)

    @property
    def filesystem(self) -> str:
        return self.mount.type

    def _become_subvolume(self) -> None:
        os.rmdir(self.directory)
        run("btrfs", "subvolume", "create", self.directory)

    def _remove(self) -> None:
        if self.filesystem == BTRFS:
            run("btrfs", "subvolume", "delete", self.directory)
        else:
            shutil.rmtree(self.directory)

    @contextmanager
    def specimen(self, operation: Operation) -> Iterator[Specimen]:
        """A prepared file: written, synced, unshared, in many extents, with its donor beside it."""
        row = os.path.join(self.directory, f"row-{next(self._numbers)}")
        for name in ("up", "work", "other", "merged"):
            os.makedirs(os.path.join(row, name))
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, row)
            if operation.disruptive:
                stack.callback(self._thaw)
            # Side by side: XFS puts the files of different directories into different groups.
            path, donor = (os.path.join(row, "up", name) for name in ("file", "donor"))
            scene = Scene(path, donor, row, self.mount.point, self.filesystem)
            specimen = Specimen(path, self._write(path, donor, operation), scene)
            stack.callback(os.close, specimen.fd)
            scene.path = way(specimen, operation.route)
            yield specimen

    def _write(self, path: str, donor: str, operation: Operation) -> int:
        """Returns the holder's descriptor of the file at `path`."""
        nocow = self.filesystem == BTRFS
        with ExitStack() as stack:
            fd, other = _create(path, nocow, stack), _create(donor, nocow, stack)
            _fill((fd, other))
            if operation.tail:
                os.ftruncate(fd, SIZE + TAIL)
            os.fsync(other)
            os.fsync(fd)
            if operation.sole_reader:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return os.dup(fd)

    def _thaw(self) -> None:
        """Undo a freeze whose maker was killed; EINVAL says that there is nothing to undo."""
        fd = os.open(self.mount.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.thaw(fd)
        except OSError:
            pass
        finally:
            os.close(fd)


def way(specimen: Specimen, route: Route) -> str:
    """The path that will lead to the file through `route`, once it is `established`."""
    scene = specimen.scene
    if route is Route.HARD_LINK:
        return scene.beside("link")
    if route is Route.PROC_FD:
        return f"/proc/{os.getpid()}/fd/{specimen.fd}"
    if route in _MOUNTED:
        return os.path.join(scene.beside("merged"), "file")
    return specimen.path


@contextmanager
def established(specimen: Specimen, route: Route) -> Iterator[None]:
    """Make the route, and undo it; nothing of the file is opened. The child is dead before this
    ends, so that only a detached mount could stay busy, and that is out of everybody's sight."""
    scene = specimen.scene
    if route is Route.HARD_LINK:
        os.link(specimen.path, scene.beside("link"))
    if route not in _MOUNTED:
        yield
        return
    _mount(scene, os.path.dirname(specimen.path), route)
    try:
        yield
    finally:
        syscalls.umount(scene.beside("merged"), syscalls.MNT_DETACH)


def _mount(scene: Scene, directory: str, route: Route) -> None:
    merged, other, work = (scene.beside(name) for name in ("merged", "other", "work"))
    if route is Route.BIND:
        syscalls.mount(directory, merged, "", syscalls.MS_BIND)
        return
    lower, upper = (other, directory) if route is Route.OVERLAY else (directory, other)
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    syscalls.mount("overlay", merged, "overlay", 0, options)
