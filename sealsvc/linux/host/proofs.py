"""What BPF programs tell of the kernel's own structures (native/bpf/proof.bpf.c): who maps a file,
what is left of a description, which pages are referenced. They attach to nothing, and run without
"bpf" in the kernel's lsm= list. What they cannot tell is None."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sealsvc.core.model import ByteRange, Mark
from sealsvc.linux.native import ffi, lib

log = logging.getLogger(__name__)

_ABSENT = -1  # in place of a program's descriptor
_FIRST_PIDNS = 0xEFFFFFFC  # include/linux/proc_ns.h, PROC_PID_INIT_INO
_WAITER = b" dax_break_layout\n"


@dataclass(frozen=True, slots=True)
class Held:
    """(pid, SEAL_MAPS_* or -errno) of processes that map a range, or may. `unseen`: some references
    to the description were found in none, so that those which may can have them."""

    rows: list[tuple[int, int]]
    unseen: bool


class Prover:
    """Owns the programs. Without one (`why` says the reason) every question is answered by None."""

    def __init__(self, programs: Any = None, why: str = "") -> None:
        self._programs, self.why = programs, why

    @classmethod
    def load(cls) -> Prover:
        programs, why = ffi.new("struct seal_proofs *"), ffi.new("char[]", 256)
        if lib.seal_proofs_load(bytes(_object()), programs, why, len(why)) < 0:
            reason = ffi.string(why).decode(errors="replace")
            log.warning("proofs need looks at all processes: %s", reason)
            return cls(None, reason)
        if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PIDNS and programs.held >= 0:
            # Its numbers of processes would not be those of our /proc.
            os.close(programs.held)
            programs.held = _ABSENT
        return cls(programs)

    @property
    def mapped(self) -> int:
        """The descriptor of the program behind `is_mapped`; -1: there is none."""
        return self._program("mapped")

    def is_mapped(self, fd: int) -> bool | None:
        """Does anybody map the file? True for any DAX file when the kernel does not `waits`."""
        return _told(lib.seal_is_mapped(self._program("mapped"), fd))

    def describe(self, fd: int) -> Mark | None:
        """What `is_alive` knows the description of `fd` by again."""
        if self._program("alive") < 0:
            return None
        out = ffi.new("struct seal_description *")
        if lib.seal_describe(self._program("describe"), fd, out) < 0:
            return None
        return Mark(file=out.file, cred=out.cred)

    def is_alive(self, fd: int, mark: Mark) -> bool | None:
        """Does anything refer to the description still? `fd` is another one of the same file."""
        out = ffi.new("struct seal_description *", {"file": mark.file, "cred": mark.cred})
        return _told(lib.seal_is_alive(self._program("alive"), fd, out))

    def held(self, fd: int, mark: Mark, span: ByteRange) -> Held | None:
        """What every process maps of the span, and by which description. Waits for no process."""
        programs = self._program("held"), self._program("alive")
        if _ABSENT in programs:
            return None
        description = ffi.new("struct seal_description *", {"file": mark.file, "cred": mark.cred})
        rows, unseen = ffi.new("struct seal_held **"), ffi.new("int *")
        count: int = lib.seal_held(
            *programs, fd, description, span.offset, span.length, rows, unseen
        )
        try:
            found = [(int(rows[0][i].pid), int(rows[0][i].maps)) for i in range(max(count, 0))]
        finally:
            lib.seal_rows_free(rows[0])
        return None if count < 0 else Held(found, bool(unseen[0]))

    @functools.cached_property
    def waits(self) -> bool:
        """Does the kernel wait for page references before it frees blocks of a DAX file that nobody
        maps (since v6.15, fs/dax.c)? Where that cannot be known it does not."""
        told = _told(lib.seal_kernel_waits(self._program("waits")))
        return _has_waiter() if told is None else told

    def can_see_references(self) -> bool:
        return _told(lib.seal_are_referenced(self._program("referenced"), 0, 0, ffi.NULL)) is False

    def first_referenced(self, frame: int, count: int) -> int | None:
        """The first of `count` page frames from `frame` on that something refers to; -1: none."""
        found = ffi.new("uint64_t *")
        program = self._program("referenced")
        told = _told(lib.seal_are_referenced(program, frame, count, found))
        return None if told is None else int(found[0]) if told else -1

    def _program(self, name: str) -> int:
        return _ABSENT if self._programs is None else int(getattr(self._programs, name))


def _object() -> Path:
    """The programs, installed beside the extension module that runs them."""
    spec = find_spec("_sealsvc_native")
    beside = Path(spec.origin).parent if spec and spec.origin else Path()
    return beside / "sealsvc" / "bpf" / "proof.bpf.o"


def _told(answer: int) -> bool | None:
    return None if answer < 0 else bool(answer)


def _has_waiter() -> bool:
    """Has the kernel the function that waits? Its modules come last, and it is in none."""
    try:
        with open("/proc/kallsyms", "rb") as symbols:
            return any(line.endswith(_WAITER) for line in symbols)
    except OSError:
        return False
