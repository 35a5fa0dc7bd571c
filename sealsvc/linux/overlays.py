"""Overlays, and the upper directories below them.

truncate(2) through an overlay reaches its upper file past fanotify and past leases. The name of the
upper directory in the mount table is what the mounter wrote: relative to a directory that nobody
knows, in a mount namespace of its own, or of a directory that was renamed since. So the overlay
itself is asked (native.overlay_upper); one that does not tell is compared with the directory of
that name, and is unknown where they differ.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from sealsvc.core.errors import Refusal
from sealsvc.linux import mountinfo, native
from sealsvc.linux.ancestry import MountOfId, RootOf, directories_above
from sealsvc.linux.mountinfo import Mount
from sealsvc.runtime.workers import Workers

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_THREADS = 4  # for the overlays of one user
_PATIENCE = 1.0  # seconds that a grant waits for overlays that were just found
# fs/overlayfs/inode.c ovl_map_ino numbers directories from 1 where the layers' numbers are no use.
_FIRST_INODES = 8
_ANYBODY = 0o022


@dataclass(frozen=True, slots=True)
class Viewer:
    """Where a mount is seen from: a path that leads to the root of its mount namespace (empty: the
    service's own), and the user ids of that namespace's users (None: all)."""

    root: str
    users: tuple[range, ...] | None = None

    def may_write(self, st: os.stat_result) -> bool:
        """May its users write such a file? If not, an overlay of theirs cannot truncate it."""
        return (
            self.users is None
            or bool(st.st_mode & _ANYBODY)
            or any(st.st_uid in some for some in self.users)
        )


@dataclass(frozen=True, slots=True)
class Upper:
    """The root of an upper layer; `device` 0: its file system is known by its UUID alone."""

    inode: int
    device: int = 0
    uuid: bytes = bytes(16)


@dataclass(slots=True, eq=False)
class Overlay:
    """One that is mounted, wherever that is. `upper` is None while, or if, it is not known."""

    mount: Mount
    viewer: Viewer
    upper: Upper | None = None
    # Bytes of the upper layer's file system (fs/overlayfs/super.c, ovl_statfs); None: not known,
    # or the mounter could have it tell another number.
    capacity: int | None = None
    looked: threading.Event = field(default_factory=threading.Event)

    @property
    def point(self) -> str:
        where = "" if not self.viewer.root else f" (in the mount namespace of {self.viewer.root})"
        return self.mount.point + where


@dataclass(frozen=True, slots=True)
class Reaching:
    """The overlays that may reach files of one file system: those whose upper layer is on it, by
    the inode number of its root, and those of which it is not known."""

    near: dict[int, list[Overlay]]
    unknown: list[Overlay]

    def __bool__(self) -> bool:
        return bool(self.near or self.unknown)


class Overlays:
    """All that are mounted, by device: the mounts of one overlay share it. `found` is called, from
    a thread, with each whose upper directory has been looked for."""

    def __init__(self, root_of: RootOf, found: Callable[[Overlay], None]) -> None:
        self._root_of, self._found = root_of, found
        self._known: dict[int, Overlay] = {}
        self._waiting: list[Overlay] = []  # those that were not yet looked at when last updated
        self._reaching: dict[tuple[int, bytes | None], Reaching] = {}  # by file system
        self._workers = Workers(_THREADS)

    def update(self, seen: Iterable[tuple[Mount, Viewer]]) -> None:
        """`seen` are all overlays with an upper directory that are mounted now."""
        sightings: dict[int, list[tuple[Mount, Viewer]]] = {}
        for mount, viewer in seen:
            sightings.setdefault(mount.device, []).append((mount, viewer))
        now: dict[int, Overlay] = {}
        for device, where in sightings.items():
            before = self._known.get(device)
            # What is seen nowhere as it was may be another, with the device of one that is gone.
            if before is None or (before.mount, before.viewer) not in where:
                before = Overlay(*where[0])
            now[device] = before
        fresh = [o for device, o in now.items() if self._known.get(device) is not o]
        self._known = now
        self._waiting = [o for o in now.values() if not o.looked.is_set()]
        self._reaching = {}
        for overlay in fresh:
            self._workers.of(overlay.viewer.users).submit(self._look, overlay)

    def verify(self) -> None:
        """Ask all of them again: between two looks at a mount table, an overlay may have been
        replaced by another with the same line in it."""
        by_users: dict[tuple[range, ...] | None, list[Overlay]] = {}
        for overlay in self._known.values():
            by_users.setdefault(overlay.viewer.users, []).append(overlay)
        for users, overlays in by_users.items():
            self._workers.of(users).submit(self._verify, overlays)

    def stop(self) -> None:
        self._workers.stop()

    def refuse_if_upper(
        self, fd: int, path: str, mount_of_id: MountOfId, *, strict: bool, anywhere: bool
    ) -> None:
        """Raises overlay-upper. `strict`: also where it is not known whether an overlay reaches the
        file. `anywhere`: also where the file lies outside the upper directory now, and users of the
        overlay may write it: what they once opened through it stays theirs when it is renamed."""
        deadline = time.monotonic() + _PATIENCE
        for overlay in self._waiting:
            overlay.looked.wait(max(0.0, deadline - time.monotonic()))
        if (over := self.over(fd, mount_of_id, strict=strict)) is not None:
            raise refusal(over, path)
        if anywhere and (near := self._of_users(fd)) is not None:
            raise Refusal(
                "overlay-upper",
                f"{path} may have been opened through the overlay on {near.point}, before it was"
                " renamed",
                {"path": path, "overlay": near.mount.point},
            )

    def _of_users(self, fd: int) -> Overlay | None:
        """One on the file system whose mounter has a user namespace of his own, and who may write
        the file."""
        st, reaching = os.fstat(fd), self.reaching(fd)
        others = (*chain.from_iterable(reaching.near.values()), *reaching.unknown)
        of_users = (overlay for overlay in others if overlay.viewer.users is not None)
        return next((overlay for overlay in of_users if overlay.viewer.may_write(st)), None)

    def over(
        self,
        fd: int,
        mount_of_id: MountOfId,
        *,
        strict: bool,
        among: Reaching | None = None,
    ) -> Overlay | None:
        """The overlay that reaches the file, `among` these (of its file system) or all; with
        `strict` also one that may."""
        reaching = self.reaching(fd) if among is None else among
        if not reaching:
            return None
        st, near, unknown = os.fstat(fd), reaching.near, reaching.unknown
        if unknown:
            capacity = _capacity(fd, mount_of_id)
            unknown = [o for o in unknown if o.capacity is None or capacity in (None, o.capacity)]
        if near:
            above = directories_above(fd, mount_of_id, self._root_of)
            if above is None:
                every = chain.from_iterable(near.values())
                found = next((o for o in every if strict and o.viewer.may_write(st)), None)
            else:
                found = next((near[inode][0] for inode in above if inode in near), None)
            if found is not None:
                return found
        return next((o for o in unknown if strict and o.viewer.may_write(st)), None)

    def reaching(self, fd: int, among: Iterable[Overlay] | None = None) -> Reaching:
        """The overlays on the file system of `fd`, of `among` or of all. All are sorted once for
        each file system."""
        device, uuid = os.fstat(fd).st_dev, native.filesystem_uuid(fd)
        if among is not None:
            return _sort(among, device, uuid)
        cache, key = self._reaching, (device, uuid)
        if key not in cache:
            cache[key] = _sort(list(self._known.values()), device, uuid)
        return cache[key]

    def _verify(self, overlays: list[Overlay]) -> None:
        for overlay in overlays:
            if not overlay.looked.is_set():
                continue
            upper = _upper_of(overlay)
            if upper is not None and upper != overlay.upper:
                overlay.upper = upper
                self._reaching = {}
                self._found(overlay)

    def _look(self, overlay: Overlay) -> None:
        try:
            overlay.upper = _upper_of(overlay)
        finally:
            overlay.looked.set()
            self._reaching = {}
            self._found(overlay)


def _capacity(fd: int, mount_of_id: MountOfId) -> int | None:
    """Bytes of the file's file system, as an overlay with its upper layer there would tell them.
    None where it could tell others: directories with a project quota do."""
    mount = mount_of_id(mountinfo.mount_id(fd))
    if mount is None or "prjquota" in mount.options or "pquota" in mount.options:
        return None
    return _bytes_of(fd)


def _bytes_of(fd: int) -> int:
    found = os.fstatvfs(fd)
    return found.f_blocks * found.f_frsize


def _sort(overlays: Iterable[Overlay], device: int, uuid: bytes | None) -> Reaching:
    near: dict[int, list[Overlay]] = {}
    unknown: list[Overlay] = []
    for overlay in overlays:
        if overlay.upper is None:
            unknown.append(overlay)
        elif _is_on(overlay.upper, device, uuid):
            near.setdefault(overlay.upper.inode, []).append(overlay)
    return Reaching(near, unknown)


def refusal(overlay: Overlay, path: str) -> Refusal:
    if overlay.upper is None:
        why = "may lie in the upper directory, which cannot be told,"
    else:
        why = "lies in the upper directory"
    return Refusal(
        "overlay-upper",
        f"{path} {why} of the overlay on {overlay.point}",
        {"path": path, "overlay": overlay.mount.point},
    )


def _is_on(upper: Upper, device: int, uuid: bytes | None) -> bool:
    """Is the upper layer on this file system, as far as can be told?"""
    if upper.device:
        return upper.device == device
    return uuid is None or not any(upper.uuid) or upper.uuid == uuid


def _upper_of(overlay: Overlay) -> Upper | None:
    """In a thread that may be lost: the paths are others'."""
    try:
        top = os.open(overlay.viewer.root + overlay.mount.point, _DIRECTORY)
    except OSError:
        return None
    try:
        if os.fstat(top).st_dev != overlay.mount.device:
            return None  # another mount hides it
        if overlay.viewer.users is None:
            overlay.capacity = _bytes_of(top)
        if told := native.overlay_upper(top):
            return Upper(told[1], uuid=told[0])
        return _named_upper(overlay, top)
    except OSError:
        return None
    finally:
        os.close(top)


def _named_upper(overlay: Overlay, top: int) -> Upper | None:
    """The directory of the name in the mount table. An unprivileged user's must have the inode
    number and the time of birth that the overlay shows for its own root: both are the upper
    directory's (fs/overlayfs/inode.c ovl_getattr), unless the layers are on several file
    systems."""
    name = overlay.mount.option("upperdir") or ""
    if not name.startswith("/"):
        return None
    directory = os.open(overlay.viewer.root + name, _DIRECTORY)
    try:
        st, root = os.fstat(directory), os.fstat(top)
        born = native.birth_time(directory)
        same = st.st_ino == root.st_ino and born == native.birth_time(top) and born is not None
        if overlay.viewer.users is not None and (st.st_ino <= _FIRST_INODES or not same):
            return None
        return Upper(st.st_ino, device=st.st_dev)
    finally:
        os.close(directory)
