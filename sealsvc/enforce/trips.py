"""The tripwire in the kernel: BPF programs at the functions that change extent maps.

They refuse nothing. Each reports a change of a sealed range's map at the moment it happens, whoever
makes it and however it got past the enforcers (native/bpf/trip_xfs.bpf.c and trip_ext4.bpf.c).
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sealsvc.core.model import ByteRange, FileId
from sealsvc.linux.native import ffi, lib

_BATCH = 64
_MAX_PROGRAMS = 32


@dataclass(frozen=True, slots=True)
class Trip:
    """The kernel's `function` was called on a sealed range, by the thread `tid`. `offset` and
    `length` are in bytes (length 0: to the end). `certain`: it has moved blocks from their offsets;
    otherwise the map must be compared. `time` is in ns of CLOCK_MONOTONIC. `stack` has the kernel's
    return addresses, the innermost first."""

    time: int
    file: FileId
    function: str
    offset: int
    length: int
    certain: bool
    pid: int
    tid: int
    uid: int
    comm: str
    stack: tuple[int, ...]

    def overlaps(self, range: ByteRange) -> bool:
        """Whether the trip reaches into this range."""
        end = self.offset + self.length if self.length else range.end
        return self.offset < range.end and range.offset < end

    def __str__(self) -> str:
        end = f"{self.offset + self.length}" if self.length else "the end"
        return (
            f"{self.function}() on bytes {self.offset} to {end}, by thread {self.tid},"
            f" process {self.pid} ({self.comm}), user {self.uid}"
        )

    def symbols(self) -> list[str]:
        """The kernel's stack as symbols, the innermost first; as addresses when they cannot be
        read. Reads all of /proc/kallsyms, which takes some 100 ms."""
        out = ffi.new("struct seal_symbol[]", max(len(self.stack), 1))
        if lib.seal_symbolise(list(self.stack), len(self.stack), out) < 0:
            return [hex(address) for address in self.stack]
        return [_symbol(address, out[i]) for i, address in enumerate(self.stack)]


@runtime_checkable
class Tripping(Protocol):
    """An enforcer that has tripwire programs."""

    def untripped(self) -> list[str]:
        """The functions to which no program could be attached, with the reason, as text."""
        ...


class Trips:
    """The tripwire programs of a loaded enforcer (struct seal_bpf)."""

    def __init__(self, bpf: Any, objects: Path, directory: Path) -> None:
        """The object files are in `objects`; programs are pinned below `directory`."""
        self._bpf, self._objects, self._directory = bpf, objects, directory
        self._lock = threading.Lock()
        self._tried: set[str] = set()
        self._found = ffi.new("struct seal_bpf_trip[]", _BATCH)

    def watch(self, type: str) -> None:
        """Attach the programs for a type of file system, which must be mounted. Does so once for
        each type. May be called from any thread."""
        path = self._objects / f"trip_{type}.bpf.o"
        with self._lock:
            if type in self._tried or not path.exists():
                return
            self._tried.add(type)
            lib.seal_bpf_trip(
                self._bpf, os.fsencode(path), os.fsencode(self._directory), type.encode()
            )

    def _programs(self) -> list[tuple[str, int, str]]:
        out = ffi.new("struct seal_bpf_program[]", _MAX_PROGRAMS)
        count = lib.seal_bpf_trip_programs(self._bpf, out, _MAX_PROGRAMS)
        return [(_text(p.name), int(p.state), _text(p.why)) for p in out[0:count]]

    @property
    def attached(self) -> set[str]:
        """Names of the attached programs."""
        return {name for name, state, _ in self._programs() if state == lib.SEAL_BPF_ON}

    def missing(self) -> list[str]:
        """The programs that could not be attached, with the reason, as text."""
        return [
            f"no tripwire {name}: {why}"
            for name, state, why in self._programs()
            if state == lib.SEAL_BPF_OFF
        ]

    def read(self) -> list[Trip]:
        """The trips that came with the last batch of events (seal_bpf_events)."""
        count = lib.seal_bpf_trips(self._bpf, self._found, _BATCH)
        return [_trip(self._found[i]) for i in range(count)]


def _text(raw: Any) -> str:
    return bytes(ffi.string(raw)).decode(errors="replace")


def _symbol(address: int, found: Any) -> str:
    return f"{_text(found.name)}+{address - found.address:#x}" if found.address else hex(address)


def _trip(raw: Any) -> Trip:
    device = raw.file.device
    return Trip(
        time=raw.time,
        file=FileId(os.makedev(device >> 20, device & 0xFFFFF), raw.file.inode),
        function=_text(lib.seal_trip_function(raw.function)),
        offset=raw.offset,
        length=raw.length,
        certain=bool(raw.certain),
        pid=raw.tgid,
        tid=raw.tid,
        uid=raw.uid,
        comm=_text(raw.comm),
        stack=tuple(raw.stack[0 : min(raw.depth, len(raw.stack))]),
    )
