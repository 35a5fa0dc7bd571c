"""The mounts of the whole machine: those of every mount namespace that some task is in.

There is no notice of a new namespace: all tasks are looked at several times a second, natively.
Each namespace is then watched by a descriptor of one of its tasks' mountinfo. Such a descriptor
keeps the namespace, and so its mounts, alive: it is closed as soon as no task is in the namespace
any more, for which the task is watched by a pidfd as well.

The watching has a thread of its own: nothing here runs on the event loop, and nothing here touches
a file that a mount leads to, but for overlays.py, in threads that may be lost.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sealsvc.core.errors import Refusal
from sealsvc.linux import mountinfo, native
from sealsvc.linux.mountinfo import Mount, MountTable
from sealsvc.linux.overlays import Overlay, Overlays, Reaching, Viewer

_SCAN = 0.4  # seconds between two looks at all tasks
_RETRY = 1.0  # seconds until a look that failed is tried again
_SHARE = 20  # times the processor time of one look passes between two
_QUIET = 0.05  # seconds in which changes are collected
_VERIFY = 1.0  # seconds between two questions to all overlays, after changes
_MOST = 4096  # namespaces that are watched
_MOST_OF_A_USER = 256
_WHOLE_MAP = 0xFFFFFFFF  # ids, of the initial user namespace
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_ENDED = (errno.ENOENT, errno.ESRCH, errno.EINVAL)


@dataclass(slots=True)
class _Space:
    table: MountTable
    viewer: Viewer
    pidfd: int = -1
    by_id: dict[int, Mount] = field(default_factory=dict)
    by_device: dict[int, Mount] = field(default_factory=dict)
    overlays: list[Mount] = field(default_factory=list)

    def take(self) -> None:
        """The table has changed."""
        mounts = self.table.read(changed=True)
        self.by_id = {mount.id: mount for mount in mounts}
        whole = [mount for mount in mounts if mount.root == "/"]
        self.by_device = {mount.device: mount for mount in (*reversed(mounts), *reversed(whole))}
        self.overlays = [m for m in mounts if m.type == "overlay" and m.option("upperdir")]

    def close(self) -> None:
        self.table.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)


class MountListener(Protocol):
    """Who is told of mounts, from a thread."""

    def mounts_changed(self) -> None:
        """Mounts have come or gone."""
        ...

    def overlay_found(self, overlay: Overlay) -> None:
        """There is a new overlay."""
        ...


class MountNamespaces:
    """The mounts of all mount namespaces, as they come and go."""

    def __init__(self) -> None:
        self._listener: MountListener | None = None
        self.overlays = Overlays(self.root_of, self._tell_overlay)
        # Namespaces that are not, or not wholly, seen, by whose users.
        self.blind: dict[tuple[range, ...] | None, str] = {}
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._by_fd: dict[int, int] = {}  # the namespace of a mountinfo descriptor
        self._spaces: dict[int, _Space] = {}
        self._own = os.stat("/proc/self/ns/mnt").st_ino
        self._scan_due = self._scanned = 0.0
        self._stopped = self._dirty = False
        self._trouble = ""  # why the last look for namespaces failed
        self._thread: threading.Thread | None = None
        with self._lock:
            self._add(self._own, Viewer(""), os.open("/proc/self/mountinfo", _READ))
            self._tell_overlays()

    def start(self, listener: MountListener) -> None:
        """Watch from a thread, and tell `listener`."""
        self._listener = listener
        self.scan()
        self._thread = threading.Thread(target=self._run, name="seal-mounts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        self.overlays.stop()
        with self._lock:
            for id in list(self._spaces):
                self._remove(id)
        self._epoll.close()
        os.close(self._wake)

    # Looking

    def warnings(self) -> list[str]:
        """What of the machine's mounts is not seen."""
        skipped = sum(space.table.skipped for space in self._all())
        parse = f"{skipped} lines of mount tables cannot be parsed: those mounts are not seen"
        blind = (f"the mounts of {why} are not all seen" for why in self.blind.values())
        trouble = [self._trouble] if self._trouble else []
        return [*trouble, *([parse] if skipped else []), *blind]

    def over(self, fd: int, among: Reaching, *, strict: bool) -> Overlay | None:
        """As Overlays.over."""
        return self.overlays.over(fd, self.mount_of_id, strict=strict, among=among)

    def mount_of(self, fd: int) -> Mount | None:
        """The mount that the descriptor was opened on, where it is in the service's own namespace;
        else any of its file system. A mount of this very moment is seen, too."""
        self.refresh()
        own = self._spaces[self._own].by_id.get(mountinfo.mount_id(fd))
        device = os.fstat(fd).st_dev
        there = (space.by_device[device] for space in self._all() if device in space.by_device)
        return own or next(there, None)

    def mount_of_id(self, id: int) -> Mount | None:
        return next((space.by_id[id] for space in self._all() if id in space.by_id), None)

    def devices(self) -> set[int]:
        """Of all file systems that are mounted somewhere."""
        return set().union(*(space.by_device for space in self._all()))

    def root_of(self, device: int) -> int:
        """The root directory of a file system, opened where a mount shows all of it; -1:
        nowhere."""
        for space in self._all():
            mount = space.by_device.get(device)
            if mount is None or mount.root != "/":
                continue
            with suppress(OSError):
                fd = os.open(space.viewer.root + mount.point, _DIRECTORY)
                if os.fstat(fd).st_dev == device:
                    return fd
                os.close(fd)
        return -1

    def refuse_if_overlay_upper(
        self, fd: int, path: str, *, strict: bool, anywhere: bool = False
    ) -> None:
        """Raises overlay-upper. `strict`: what cannot be known is refused as well. `anywhere`: as
        in Overlays.refuse_if_upper."""
        strict = strict or anywhere
        if strict and time.monotonic() > self._scanned + _SCAN:
            self.scan()
        self.refresh()
        self.overlays.refuse_if_upper(fd, path, self.mount_of_id, strict=strict, anywhere=anywhere)
        if not strict:
            return
        st = os.fstat(fd)
        for users, why in list(self.blind.items()):
            if Viewer("", users).may_write(st):
                raise Refusal(
                    "overlay-upper",
                    f"{path} may be reached through an overlay in {why}",
                    {"path": path, "overlay": ""},
                )

    # Watching

    def refresh(self) -> None:
        """Take in what has changed in the namespaces that are known."""
        with self._lock:
            self._take_in(self._epoll.poll(0))

    def scan(self) -> None:
        """Look for namespaces that have come or gone."""
        began = time.thread_time()
        found = native.mount_namespaces()
        with self._lock:
            self._note(found)
        self._scanned = time.monotonic()
        self._scan_due = self._scanned + max(_SCAN, _SHARE * (time.thread_time() - began))

    def _tell_changed(self) -> None:
        if self._listener is not None:
            self._listener.mounts_changed()

    def _tell_overlay(self, overlay: Overlay) -> None:
        if self._listener is not None:
            self._listener.overlay_found(overlay)

    def _run(self) -> None:
        verified, verify_due = True, 0.0
        while not self._stopped:
            events = self._epoll.poll(max(0.0, self._scan_due - time.monotonic()))
            with self._lock:
                self._take_in(events)
            if time.monotonic() >= self._scan_due:
                self._scan_or_later()
            if self._dirty:  # a grant may have taken the change in
                self._dirty, verified = False, False
                self._tell_changed()
                time.sleep(_QUIET)
            if not verified and time.monotonic() >= verify_due:
                self.overlays.verify()
                verified, verify_due = True, time.monotonic() + _VERIFY

    def _scan_or_later(self) -> None:
        """As scan(); when it fails, as it does without a free descriptor, it is tried again."""
        reason = ""
        try:
            self.scan()
        except OSError as error:
            self._scan_due = time.monotonic() + _RETRY
            reason = f"mount namespaces cannot be looked for: {error.strerror}"
        if reason != self._trouble:
            self._trouble, self._dirty = reason, True  # so that it is told

    def _take_in(self, events: list[tuple[int, int]]) -> None:
        for fd, _ in events:
            if fd in self._by_fd:
                self._spaces[self._by_fd[fd]].take()
                self._dirty = True
            elif fd != self._wake:  # a task has ended: another may be in its namespace
                with suppress(OSError):
                    self._epoll.unregister(fd)
                self._scan_due = 0.0
        if self._dirty:
            self._tell_overlays()

    def _note(self, found: list[native.MountNamespace]) -> None:
        blind: dict[tuple[range, ...] | None, str] = {}
        counts: Counter[tuple[range, ...] | None] = Counter()
        others = [each for each in found if each.id != self._own]
        for each in others:
            space = self._spaces.get(each.id)
            users = space.viewer.users if space else _users_of(each.task)
            counts[users] += 1
            if not each.whole:
                blind[users] = f"the mount namespace of process {each.task}, which is in a chroot"
            if space is not None:
                if space.pidfd < 0 or _has_ended(space.pidfd):
                    self._watch_task(space, each.task)
            elif len(self._spaces) >= _MOST or (users and counts[users] > _MOST_OF_A_USER):
                blind[users] = "one of more mount namespaces than are looked at"
            elif reason := self._open(each, users):
                blind[users] = reason
        for id in self._spaces.keys() - {self._own, *(each.id for each in others)}:
            self._remove(id)
        self.blind = blind
        self._tell_overlays()

    def _open(self, found: native.MountNamespace, users: tuple[range, ...] | None) -> str:
        """Why it cannot be watched; empty when it is, or has ended."""
        try:
            fd = os.open(f"/proc/{found.task}/mountinfo", _READ)
        except OSError as error:
            ended = error.errno in _ENDED
            return "" if ended else f"the mount namespace of process {found.task}: {error.strerror}"
        self._add(found.id, Viewer(f"/proc/{found.task}/root", users), fd)
        self._watch_task(self._spaces[found.id], found.task)
        self._dirty = True
        return ""

    def _add(self, id: int, viewer: Viewer, fd: int) -> None:
        space = self._spaces[id] = _Space(MountTable(fd), viewer)
        self._by_fd[fd] = id
        self._epoll.register(fd, select.EPOLLPRI | select.EPOLLERR)
        space.take()

    def _watch_task(self, space: _Space, task: int) -> None:
        if space.pidfd >= 0:
            os.close(space.pidfd)
            space.pidfd = -1
        space.viewer = Viewer(f"/proc/{task}/root", space.viewer.users)
        with suppress(OSError):  # it has ended, or is no process of its own
            space.pidfd = native.pidfd_open(task)
            self._epoll.register(space.pidfd, select.EPOLLIN)

    def _remove(self, id: int) -> None:
        space = self._spaces.pop(id)
        del self._by_fd[space.table.fd]
        space.close()
        self._dirty = True

    def _tell_overlays(self) -> None:
        self.overlays.update(
            (mount, space.viewer) for space in self._spaces.values() for mount in space.overlays
        )

    def _all(self) -> Iterator[_Space]:
        return iter(list(self._spaces.values()))


_READ = os.O_RDONLY | os.O_CLOEXEC


def _users_of(task: int) -> tuple[range, ...] | None:
    """The user ids that a task's user namespace has, as ours (user_namespaces(7)); None: all."""
    try:
        lines = Path(f"/proc/{task}/uid_map").read_text().splitlines()
        rows = [tuple(map(int, line.split())) for line in lines]
    except (OSError, ValueError):
        return None
    if any(length >= _WHOLE_MAP for _, _, length in rows):
        return None
    return tuple(range(outside, outside + length) for _, outside, length in rows)


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
