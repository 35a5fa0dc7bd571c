"""The two files of a copy: identity, size, map, and who has seals on them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from dataclasses import dataclass, replace

import numpy as np

from sealsvc.core.errors import Refusal
from sealsvc.core.extents import EXTENT_SHARED, FLAGS, ExtentMap, normalise
from sealsvc.core.model import FileId
from sealsvc.linux import filesystem, mountinfo, native
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.host.mapped import has_dax


@dataclass(frozen=True, slots=True)
class End:
    """One open file as it was when it was looked at. `map` was read after fsync(2), all of it.

    `seals` are the ids of seals that others hold on the file; `pinned` is true while this copy
    holds an exclusive seal on it, so that `map` cannot change."""

    fd: int
    file: FileId
    size: int
    changed_ns: int
    filesystem: Filesystem
    map: ExtentMap
    dax: bool = False
    seals: tuple[str, ...] = ()
    pinned: bool = False

    @property
    def map_hash(self) -> str:
        """Equal for equal maps, however FIEMAP happened to split them, and whoever shares them: a
        clone of the file changes none of its bytes."""
        map = self.map.copy()
        map[:, FLAGS] &= np.uint64(~EXTENT_SHARED & 0xFFFFFFFF)
        return hashlib.sha256(normalise(map).tobytes()).hexdigest()[:32]

    @property
    def keeps_map(self) -> bool:
        """Somebody relies on its extent map: nothing may be shared, moved or punched."""
        return bool(self.seals) or self.pinned

    def again(self) -> End:
        """Looked at anew."""
        return replace(look(self.fd), seals=self.seals, pinned=self.pinned)


@dataclass(frozen=True, slots=True)
class Ends:
    source: End
    destination: End

    @property
    def same_file(self) -> bool:
        return self.source.file.same_inode(self.destination.file)

    @property
    def same_filesystem(self) -> bool:
        return self.source.filesystem.device == self.destination.filesystem.device

    @property
    def pinned(self) -> bool:
        return self.source.pinned and self.destination.pinned

    @property
    def pair(self) -> str:
        """Names the pair of file systems, also after a reboot where they have a UUID."""
        return f"{_name_of(self.source)}>{_name_of(self.destination)}"

    def again(self) -> Ends:
        return Ends(self.source.again(), self.destination.again())


def look(fd: int) -> End:
    """An open regular file, after fsync(2). Raises OSError, and Refusal: `not-a-regular-file`,
    `bad-request` for one that is open to append alone."""
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode):
        raise Refusal("not-a-regular-file", "only regular files can be copied", {})
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
        raise Refusal("bad-request", "a file that is open with O_APPEND takes no offsets", {})
    # Of a file that was made just now this would write the journal, as the copy's end does again.
    if st.st_size or st.st_blocks:
        os.fsync(fd)
    found = filesystem.described(fd, mountinfo.mount_of(fd, mountinfo.own().read()))
    map = _map_of(fd)
    st = os.fstat(fd)
    file = FileId(st.st_dev, st.st_ino, native.generation(fd) or 0)
    return End(fd, file, st.st_size, st.st_ctime_ns, found, map, has_dax(fd))


def open_ends(source: int, destination: int) -> Ends:
    """Both files by their descriptors: the source open for reading, the destination for both."""
    return Ends(look(source), look(destination))


def _map_of(fd: int) -> ExtentMap:
    """tmpfs and others have no FIEMAP: all of the file counts as one extent of data there."""
    try:
        return native.read_extents(fd, None)
    except OSError:
        size = os.fstat(fd).st_size
        return np.array([[0, 0, size, 0]] if size else [], np.uint64).reshape(-1, 4)


def _name_of(end: End) -> str:
    uuid = native.filesystem_uuid(end.fd)
    return uuid.hex() if uuid else f"device {end.filesystem.device}"
