"""Mount tables (proc_pid_mountinfo(5)). Kernel text is bytes: a name may hold any but NUL, and a
line that cannot be parsed is skipped and counted, and takes none of the others with it."""

from __future__ import annotations

import os
import re
import select
import threading
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mount:
    """One line. Text is as os.fsdecode gives it; `id` is unique on the
    machine while the mount lives."""

    id: int
    device: int
    root: str
    point: str
    type: str
    source: str
    options: str

    def option(self, name: str) -> str | None:
        """The value of `name=value` among the options, None without."""
        for option in self.options.split(","):
            key, equals, value = option.partition("=")
            if equals and key == name:
                return os.fsdecode(unescaped(os.fsencode(value)))
        return None


def unescaped(text: bytes) -> bytes:
    """The kernel writes a space, a tab, a newline and a backslash as octal (seq_escape)."""
    return re.sub(rb"\\([0-7]{3})", lambda m: bytes((int(m[1], 8) & 0xFF,)), text)


def parsed(line: bytes) -> Mount | None:
    """None when the line is not as the manual page says."""
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)
        major, minor = fields[2].split(b":")
        return Mount(
            id=int(fields[0]),
            device=os.makedev(int(major), int(minor)),
            root=os.fsdecode(unescaped(fields[3])),
            point=os.fsdecode(unescaped(fields[4])),
            type=os.fsdecode(fields[dash + 1].split(b".")[0]),
            source=os.fsdecode(unescaped(fields[dash + 2])),
            options=os.fsdecode(fields[dash + 3] + b"," + fields[5]),
        )
    except (ValueError, IndexError, OverflowError):
        return None


def read_lines(fd: int) -> list[bytes]:
    """Every line of an open mountinfo file, from its beginning."""
    os.lseek(fd, 0, os.SEEK_SET)
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts).split(b"\n")[:-1]


class MountTable:
    """The mounts of one namespace. Only lines that are new are parsed when it changes."""

    def __init__(self, fd: int) -> None:
        """Takes over `fd`, an open mountinfo file; poll(2) tells that the table has changed by an
        exceptional condition, which it clears."""
        self.fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLPRI | select.POLLERR)
        self._lock = threading.Lock()
        self._by_line: dict[bytes, Mount | None] = {}
        self._mounts: list[Mount] = []
        self._read = False

    def close(self) -> None:
        os.close(self.fd)

    def known(self) -> list[Mount]:
        """As they were at the last read; reads nothing, unless it never was."""
        return self._mounts if self._read else self.read()

    def read(self, *, changed: bool = False) -> list[Mount]:
        """As they are. `changed`: who calls was told so by poll itself."""
        with self._lock:
            # A change from here on is told by the next poll.
            if self._poll.poll(0) or changed or not self._read:
                self._take(read_lines(self.fd))
                self._read = True
            return self._mounts

    @property
    def skipped(self) -> int:
        """Lines that could not be parsed."""
        return len(self._by_line) - len(self._mounts)

    def _take(self, lines: Iterable[bytes]) -> None:
        before = self._by_line
        after = {line: before[line] if line in before else parsed(line) for line in lines}
        self._by_line = after
        self._mounts = [mount for mount in after.values() if mount is not None]


_own: MountTable | None = None
_making = threading.Lock()


def own() -> MountTable:
    """The table of the service's own mount namespace."""
    global _own
    with _making:
        if _own is None:
            _own = MountTable(os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
        return _own


def mount_id(fd: int) -> int:
    """The mount that `fd` was opened on. Asks the file system nothing."""
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = re.search(rb"^mnt_id:\s*(\d+)", os.read(info, 8192), re.M)
    finally:
        os.close(info)
    return int(found[1]) if found else -1


def mount_of(fd: int, table: Iterable[Mount]) -> Mount | None:
    wanted = mount_id(fd)
    return next((mount for mount in table if mount.id == wanted), None)


def mount_at(path: str, table: Iterable[Mount]) -> Mount | None:
    """The mount that an absolute path without symbolic links leads to, by the table alone: looking
    at the path itself may block."""
    normal = os.path.normpath(path)
    above = [m for m in table if m.point == "/" or f"{normal}/".startswith(f"{m.point}/")]
    # Of those on the same directory, the last hides the others.
    return max(reversed(above), key=lambda mount: len(mount.point)) if above else None
