"""What an operation finds in the second process: the file, the ways to it, and its neighbours."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field

KIB = 1024
SIZE = 1024 * KIB  # of the file, all of it written
START, LENGTH = 256 * KIB, 512 * KIB  # the sealed range
CHUNK = 64 * KIB  # what an operation touches at START: whole blocks on every file system
TAIL = 256 * KIB  # the hole behind SIZE, for operations that need one


@dataclass
class Scene:
    """`path` is this process's way to the file: through the route under test. `donor` has the
    same length and the same data, and is not sealed. `mount` is the file system's mount point."""

    path: str
    donor_path: str
    directory: str
    mount: str
    filesystem: str
    flags: int | None = None
    opened: int = -1
    mapping: mmap.mmap | None = None
    loop: int = -1
    _donor: int = field(default=-1)

    @property
    def fd(self) -> int:
        """The descriptor of the file, opened at its first use unless it was opened early."""
        if self.opened < 0:
            flags = os.O_RDWR if self.flags is None else self.flags
            self.opened = os.open(self.path, flags | os.O_CLOEXEC)
        return self.opened

    @property
    def donor(self) -> int:
        if self._donor < 0:
            self._donor = os.open(self.donor_path, os.O_RDWR | os.O_CLOEXEC)
        return self._donor

    def beside(self, name: str) -> str:
        return os.path.join(self.directory, name)
