"""The runtime directory: one small record for each export, and its page of counters."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.linux import proc_stat

if TYPE_CHECKING:
    from sealsvc.exports.base import Spec

DEFAULT = "/run/sealsvc-exports"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """An export as its process last wrote it. `pid` and `start_time` (clock ticks since boot, field
    22 of /proc/PID/stat) name its process; `device` is "" until it can be used. `left` is what the
    type needs to find again what its process made, `failure` why it ended. `supervisor` is the
    process that starts it again when it dies, with its start time; 0: there is none."""

    spec: Any
    pid: int
    start_time: int
    device: str = ""
    left: dict[str, Any] = {}
    failure: str = ""
    supervisor: int = 0
    supervisor_start_time: int = 0

    @property
    def lives(self) -> bool:
        return _lives(self.pid, self.start_time)

    @property
    def is_supervised(self) -> bool:
        return bool(self.supervisor) and _lives(self.supervisor, self.supervisor_start_time)


def _lives(pid: int, since: int) -> bool:
    if found := start_time(pid):
        return found == since
    try:
        os.kill(pid, 0)
    except PermissionError:  # there, and not shown to us in /proc (hidepid)
        return True
    except ProcessLookupError:
        return False
    return False  # it has ended, and was not waited for


def start_time(pid: int) -> int:
    """0: there is no such process, or it has ended and was not waited for."""
    try:
        stat = proc_stat.read(pid)
    except OSError:
        return 0
    return 0 if stat.state in "ZX" else stat.start_time


class Runtime:
    def __init__(self, directory: str | None = None) -> None:
        self.directory = Path(directory or os.environ.get("SEALSVC_EXPORTS", DEFAULT))

    def make(self) -> None:
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)

    def record(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    def stats(self, name: str) -> Path:
        return self.directory / f"{name}.stats"

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def lock(self, name: str) -> Path:
        """Held by the export's process for as long as it lives."""
        return self.directory / f"{name}.lock"

    def names(self) -> list[str]:
        return sorted(path.stem for path in self.directory.glob("*.json"))

    def find(self, name: str) -> Record | None:
        from sealsvc.exports.base import Spec

        try:
            text = self.record(name).read_bytes()
        except FileNotFoundError:
            return None
        found = msgspec.json.decode(text, type=Record)
        return msgspec.structs.replace(found, spec=msgspec.convert(found.spec, Spec))

    def read(self, name: str) -> Record:
        """Refusal `no-such-export` when there is none."""
        if (found := self.find(name)) is None:
            raise Refusal("no-such-export", f"there is no export {name}", {"export": name})
        return found

    def records(self) -> Iterator[Record]:
        for name in self.names():
            if (found := self.find(name)) is not None:
                yield found

    def write(self, record: Record) -> None:
        """Whole or not at all, whoever reads meanwhile."""
        spec: Spec = record.spec
        fd, made = tempfile.mkstemp(dir=self.directory, prefix=f".{spec.name}-")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode(record))
                os.fchmod(file.fileno(), 0o644)
            os.rename(made, self.record(spec.name))
        except BaseException:
            os.unlink(made)
            raise

    def remove(self, name: str) -> None:
        for path in (self.record(name), self.stats(name), self.log(name), self.lock(name)):
            with suppress(FileNotFoundError):
                path.unlink()
