"""The real system: Linux files and processes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, FileId, Gap, Mark, Preparation
from sealsvc.linux import compare, filesystem, mountinfo, native, processes
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host import (
    Comparison,
    ExtentMap,
    MappingFacts,
    MappingQuestion,
    Progress,
    ReleaseQuestion,
    RemainingMapping,
    Target,
    cow,
    mapped,
    pmem,
)
from sealsvc.linux.host.place import refuse_if_misplaced
from sealsvc.linux.host.prepare import prepare
from sealsvc.linux.host.proofs import Prover
from sealsvc.linux.host.releases import Releases
from sealsvc.linux.loops import LoopDevices
from sealsvc.linux.namespaces import MountNamespaces
from sealsvc.linux.processes import Process

_RETRY = 1.0  # seconds after which a broken lease should be gone


class KernelHost:
    simulated = False

    def __init__(self, prover: Prover | None = None) -> None:
        self._releases = Releases(prover or Prover())
        self.namespaces = MountNamespaces()
        self._loops, self._cow = LoopDevices(), cow.CowPreallocations()

    def open_path(self, path: str, roots: Sequence[str], *, writable: bool) -> Target:
        root = _root_of(path, roots)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK | os.O_NOCTTY
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = native.open_beneath(directory, os.path.relpath(path, root), flags)
        except OSError as error:
            raise _open_refusal(error, path) from None
        finally:
            os.close(directory)
        try:
            # O_NONBLOCK kept a FIFO or a lease from stopping us; regular files do not want it.
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
            return self._target(fd, path, writable=writable)
        except BaseException:
            os.close(fd)
            raise

    def adopt(self, fd: int, *, writable: bool) -> Target:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        mode = flags & os.O_ACCMODE
        if flags & os.O_PATH or mode == os.O_WRONLY or (writable and mode != os.O_RDWR):
            raise Refusal(
                "bad-request",
                "the descriptor must be open for reading and writing (O_RDWR) for iomode rw,"
                " and at least for reading for iomode read",
            )
        path = os.readlink(f"/proc/self/fd/{fd}")
        return self._target(fd, path, writable=mode == os.O_RDWR)

    def identify(self, path: str, roots: Sequence[str] | None = None) -> FileId:
        try:
            fd = _open_to_identify(path, roots)
        except OSError as error:
            raise _open_refusal(error, path) from None
        try:
            st = os.fstat(fd)
            return FileId(st.st_dev, st.st_ino)
        except OSError as error:
            raise _open_refusal(error, path) from None
        finally:
            os.close(fd)

    def filesystems(self, roots: Sequence[str]) -> list[Filesystem]:
        found: dict[int, Filesystem] = {}
        for mount in mountinfo.own().read():
            if any(_is_under(mount.point, root) for root in roots):
                self._add(found, mount.point)
        for root in roots:
            if os.path.isdir(root):
                self._add(found, root)
        return list(found.values())

    def region_of(self, device: int) -> tuple[int, int] | None:
        return pmem.region_of(device)

    def refuse_if_unkeepable(self, target: Target, *, exclusive: bool) -> None:
        if reason := target.filesystem.unsupported:
            raise Refusal(
                "filesystem-unsupported",
                f"{target.path}: {reason}",
                {"path": target.path, "filesystem": target.filesystem.type},
            )
        with _named(target.path):
            refuse_if_misplaced(target)
            self._loops.refuse_if_backing(target.fd, target.path)
        self.refuse_if_overlaid(target, exclusive=exclusive)

    def refuse_if_overlaid(
        self, target: Target, *, exclusive: bool, anywhere: bool = False
    ) -> None:
        # Of shared seals, an overlay that nobody knows of is a risk with a name.
        with _named(target.path):
            self.namespaces.refuse_if_overlay_upper(
                target.fd, target.path, strict=exclusive, anywhere=anywhere
            )

    def prepare(
        self,
        target: Target,
        sealed: ByteRange,
        steps: Sequence[Preparation],
        progress: Progress,
    ) -> None:
        prepare(target, sealed, steps, progress)

    def settle(self, target: Target) -> None:
        try:
            os.fsync(target.fd)
        except OSError as error:
            raise Refusal(
                "io-error", f"fsync of {target.path}: {error.strerror}", {"errno": error.errno}
            ) from error

    def steady(self, target: Target) -> None:
        """Sharing anywhere in the file, also outside the range, lets blocks of the range move: see
        host/cow.py."""
        if not target.filesystem.reflink or target.filesystem.read_only:
            return  # XFS drops preallocations itself when it becomes read-only (xfs_remount_ro)
        with _named(target.path):
            blocks = cow.look(target)
            shared = int((blocks.rows[:, 3] & native.EXTENT_SHARED != 0).sum())
            if not shared:
                self._cow.drop(target, blocks)
                return
        raise Refusal(
            "reflink-neighbours",
            f"{target.path} shares {shared} extents with other files; on reflink XFS its unshared"
            " blocks can still move while it does: ask for prepare=unshare",
            {"path": target.path, "reason": "shared", "shared_extents": shared},
        )

    def read_map(self, fd: int, sealed: ByteRange | None) -> ExtentMap:
        try:
            return native.read_extents(fd, sealed)
        except OSError as error:
            raise Refusal(
                "io-error", f"FIEMAP: {error.strerror}", {"errno": error.errno}
            ) from error

    def look(self, anchor: int, file: FileId, sealed: ByteRange | None) -> ExtentMap:
        if anchor < 0:
            # The service was restarted after the file system had been shut down.
            raise Refusal("io-error", "it cannot be opened any more", {"errno": errno.EIO})
        fd = os.dup(anchor)
        try:
            st = os.fstat(fd)
            if (st.st_dev, st.st_ino) != (file.device, file.inode):
                raise Refusal("no-such-seal", "the seal has ended meanwhile")
            _refuse_if_dead(fd)
            return np.empty((0, 4), np.uint64) if sealed is None else self.read_map(fd, sealed)
        finally:
            os.close(fd)

    def comparison(
        self,
        device: int,
        anchors: Sequence[int],
        inodes: Sequence[int],
        ranges: Sequence[ByteRange],
        maps: Sequence[ExtentMap],
    ) -> Comparison:
        return compare.Comparison(device, anchors, inodes, ranges, maps)

    def gaps(self, target: Target) -> tuple[Gap, ...]:
        return self._releases.gaps(target)

    def mark(self, fd: int, token: int, *, sole: bool) -> Mark:
        return self._releases.mark(fd, token, sole=sole)

    def is_left(self, anchor: int, mark: Mark) -> bool:
        return self._releases.is_left(anchor, mark)

    def is_free(self, question: ReleaseQuestion) -> bool:
        return self._releases.is_free(question)

    def remaining_mappings(self, question: ReleaseQuestion) -> list[RemainingMapping]:
        return self._releases.remaining_mappings(question)

    def writable_mappings(self, question: ReleaseQuestion) -> list[RemainingMapping]:
        return self._releases.writable_mappings(question)

    def has_dax(self, file: str | int) -> bool:
        if isinstance(file, int):
            return mapped.has_dax(file)
        try:
            fd = os.open(file, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise _open_refusal(error, file) from None
        try:
            return mapped.has_dax(fd)
        finally:
            os.close(fd)

    def validate(self, question: MappingQuestion) -> MappingFacts:
        return mapped.validate(question)

    def process(self, pid: int) -> Process:
        return processes.by_pid(pid)

    def _described(self, fd: int) -> Filesystem:
        if (mount := self.namespaces.mount_of(fd)) is None:
            self.namespaces.refresh()
            mount = self.namespaces.mount_of(fd)
        return filesystem.described(fd, mount)

    def _add(self, found: dict[int, Filesystem], path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            described = self._described(fd)
            found.setdefault(described.device, described)
        except (Refusal, OSError):
            return
        finally:
            os.close(fd)

    def _target(self, fd: int, path: str, *, writable: bool) -> Target:
        try:
            st = os.fstat(fd)
            if not stat.S_ISREG(st.st_mode):
                raise Refusal("not-a-regular-file", f"{path} is not a regular file", {"path": path})
            described = self._described(fd)
            file = FileId(st.st_dev, st.st_ino, native.generation(fd) or 0)
            return Target(file, fd, path, st.st_size, described, writable)
        except OSError as error:
            raise _open_refusal(error, path) from None


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turns a failed call on the file into a refusal that names both."""
    try:
        yield
    except OSError as error:
        call = error.filename if error.filename and error.filename != path else "stat"
        raise Refusal(
            "io-error", f"{call} of {path}: {error.strerror}", {"call": call, "errno": error.errno}
        ) from error


def _refuse_if_dead(fd: int) -> None:
    """ext4 tells its maps even after it was shut down, but not attributes. Reading would not do: of
    a watched file the gate cannot be asked then, and the answer is EPERM."""
    try:
        os.getxattr(fd, "trusted.sealsvc")
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
            raise


def _is_under(path: str, root: str) -> bool:
    return os.path.commonpath([path, root]) == root


def _root_of(path: str, roots: Sequence[str]) -> str:
    if not os.path.isabs(path):
        raise Refusal("bad-request", f"the path {path!r} is not absolute", {"path": path})
    for root in roots:
        if os.path.normpath(path) != root and _is_under(os.path.normpath(path), root):
            return root
    raise Refusal(
        "outside-roots",
        f"{path} is not below an allowed root",
        {"path": path, "roots": list(roots)},
    )


def _open_to_identify(path: str, roots: Sequence[str] | None) -> int:
    if roots is None:
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    root = path if path in roots else _root_of(path, roots)
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return native.open_beneath(directory, os.path.relpath(path, root), os.O_PATH)
    finally:
        os.close(directory)


def _open_refusal(error: OSError, path: str) -> Refusal:
    name = error.errno
    call = error.filename if error.filename and error.filename != path else "open"
    if name == errno.EWOULDBLOCK:
        return Refusal(
            "try-later",
            f"{path} is under a lease or an NFS delegation, which is being broken",
            {"path": path},
            retry_after=_RETRY,
        )
    if name in (errno.ELOOP, errno.EXDEV):
        return Refusal(
            "outside-roots",
            f"{path} is reached through a symbolic link or leaves its root",
            {"path": path},
        )
    if name in (errno.ENOENT, errno.ENOTDIR):
        return Refusal("no-such-file", f"{path} does not exist", {"path": path})
    if name == errno.EISDIR:
        return Refusal("not-a-regular-file", f"{path} is a directory", {"path": path})
    advice = _OPEN_ADVICE.get(name or 0, "")
    return Refusal(
        "io-error", f"{call} of {path}: {error.strerror}{advice}", {"path": path, "errno": name}
    )


_OPEN_ADVICE = {
    errno.EPERM: ": it is immutable or append-only (lsattr), or the file system is shut down",
    errno.ETXTBSY: ": it is being executed, or it is a swap file in use",
    errno.EROFS: ": ask with iomode read, or mount it for writing",
    errno.EIO: ": the file system may be shut down: unmount it, check it, and mount it anew",
}


def kernel_release() -> str:
    return Path("/proc/sys/kernel/osrelease").read_text().strip()
