"""The attacking side, seen from the runner: a C program (attack/), and memory shared with it."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.support.waiting import PATIENCE

FILES, WORKERS, EPOCH_OPS, FILE_BYTES = 10, 4, 65536, 1 << 20
BLOCK = 4096
_MAGIC = 0x5EA15EA15EA15EA1
XFS, EXT4 = 2, 4
RISKS = {
    "xfs-swapext": 32,
    "ext4-move-ext": 64,
    "overlay-truncate": 128,
    "loop-device": 256,
    "ext4-swap-boot": 512,
    "ext4-inode-flags": 1024,
}
ENDINGS = ("ok", "refused", "failed", "killed")

_SOURCE = Path(__file__).parent / "attack"
_FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-mno-red-zone")


@cache
def program() -> tuple[Path, tuple[str, ...]]:
    """The compiled program, and the names of the kinds of operations. It is kept beside other
    temporary files of this process, by whoever runs first, and goes with it."""
    directory = tempfile.TemporaryDirectory(prefix="sealsvc-promise-")
    _kept.append(directory)
    path = Path(directory.name, "attack")
    sources = sorted(str(source) for source in _SOURCE.glob("*.c"))
    flags = [flag for flag in _FLAGS if flag != "-mno-red-zone" or os.uname().machine == "x86_64"]
    subprocess.run(["gcc", *flags, "-pthread", "-o", str(path), *sources], check=True)
    os.chmod(directory.name, 0o755)
    said = subprocess.run([str(path), "--kinds"], capture_output=True, text=True, check=True)
    size, *names = said.stdout.split()
    kinds = tuple(names)
    assert int(size) == ctypes.sizeof(control_type(len(kinds))), "attack.h and attack.py differ"
    return path, kinds


_kept: list[tempfile.TemporaryDirectory[str]] = []


class Target(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("sealed", ctypes.c_uint32),
        ("exclusive", ctypes.c_uint32),
    )


@cache
def control_type(kinds: int) -> type[ctypes.Structure]:
    """struct control of attack.h."""

    class Slot(ctypes.Structure):
        _fields_ = (
            ("next", ctypes.c_uint64),
            ("started_us", ctypes.c_uint64),
            ("opened", ctypes.c_uint32),
            ("pid", ctypes.c_uint32),
            ("counts", ctypes.c_uint64 * len(ENDINGS) * kinds),
            ("began_us", ctypes.c_uint64 * EPOCH_OPS),
        )

    class Control(ctypes.Structure):
        _fields_ = (
            ("magic", ctypes.c_uint64),
            ("seed", ctypes.c_uint64),
            ("epoch_first", ctypes.c_uint64),
            ("until", ctypes.c_uint64),
            ("epoch", ctypes.c_uint32),
            ("workers", ctypes.c_uint32),
            ("stop", ctypes.c_uint32),
            ("fs", ctypes.c_uint32),
            ("risks", ctypes.c_uint32),
            ("privileged", ctypes.c_uint32),
            ("without", ctypes.c_uint64),
            ("turn", ctypes.c_uint64),
            ("directory", ctypes.c_char * 256),
            ("targets", Target * FILES),
            ("slots", Slot * WORKERS),
        )

    return Control


class Attack:
    """Workers, idle until `advance` says how far they may go. As a context manager: they are gone
    with it, whatever they do."""

    def __init__(
        self,
        seed: int,
        fs: str,
        workers: int,
        privileged: int,
        records: Sequence[str] | None = None,
        ordered: bool = False,
    ) -> None:
        self._path, self.kinds = program()
        self.directory = tempfile.TemporaryDirectory(prefix="sealsvc-promise-")
        self._memory_path = Path(self.directory.name, "control")
        kind = control_type(len(self.kinds))
        with self._memory_path.open("xb") as file:
            file.truncate(ctypes.sizeof(kind))
        with self._memory_path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(kind))
        self.control: object = kind.from_buffer(self._memory)
        control = self._control
        control.magic, control.seed = _MAGIC, seed
        control.workers, control.privileged = workers, privileged
        control.fs = {"xfs": XFS, "ext4": EXT4}[fs]
        self._arguments = [str(self._path), str(self._memory_path)]
        if records is not None:
            listed = Path(self.directory.name, "records")
            listed.write_text("".join(f"{record}\n" for record in records))
            self._arguments += ["--ordered"] if ordered else []
            self._arguments.append(str(listed))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def _control(self) -> ctypes.Structure:
        assert isinstance(self.control, ctypes.Structure)
        return self.control

    def __enter__(self) -> Attack:
        self._process = subprocess.Popen(self._arguments)
        return self

    def __exit__(self, *_: object) -> None:
        self._control.stop = 1
        assert self._process
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(PATIENCE)
        self.control = None
        self._memory.close()
        self.directory.cleanup()

    def leave_out(self, names: Sequence[str]) -> None:
        """Kinds of operations that are not to be made."""
        self._control.without = sum(1 << self.kinds.index(name) for name in set(names))

    @property
    def alive(self) -> bool:
        """False also when an operation wrote to what it shares with us."""
        return (
            self._control.magic == _MAGIC
            and self._process is not None
            and self._process.poll() is None
        )

    def begin(self, epoch: int, first: int, directory: Path, targets: Sequence[Target]) -> None:
        """Have the workers open the files of a new epoch (not 0), before anything is sealed."""
        control = self._control
        control.until = first
        control.epoch_first = first
        control.turn = 0
        control.directory = os.fsencode(directory)
        for slot in self._slots():
            slot.next = first
        for n, target in enumerate(targets):
            control.targets[n] = target
        control.epoch = epoch

    def end(self) -> None:
        """Have the workers close what they have open."""
        self._control.epoch = 0

    def opened(self, epoch: int) -> bool:
        return all(slot.opened == epoch for slot in self._slots())

    def risks(self, names: Sequence[str]) -> None:
        self._control.risks = sum(RISKS.get(name, 0) for name in set(names))

    def advance(self, until: int) -> None:
        self._control.until = until

    @property
    def done(self) -> bool:
        """Has every worker come as far as it may?"""
        return all(slot.next >= self._control.until for slot in self._slots())

    @property
    def progress(self) -> list[int]:
        return [int(slot.next) for slot in self._slots()]

    def counts(self) -> Counter[str]:
        """How operations ended so far, as "kind: ending"."""
        found: Counter[str] = Counter()
        for slot in self._slots():
            for kind, name in enumerate(self.kinds):
                for ending, word in enumerate(ENDINGS):
                    found[f"{name}: {word}"] += slot.counts[kind][ending]
        return found

    def order(self, first: int, last: list[int]) -> list[tuple[int, int]]:
        """(worker, number) of what was begun since `first`, in the order in which it was."""
        begun = [
            (int(slot.began_us[(number - first) % EPOCH_OPS]), worker, number)
            for worker, slot in enumerate(self._slots())
            for number in range(first, last[worker] + 1)
        ]
        return [(worker, number) for _, worker, number in sorted(begun)]

    def describe(self, operations: Sequence[tuple[int, int]]) -> list[str]:
        """The records of operations of this run's seed, for a replay list."""
        found: dict[tuple[int, int], str] = {}
        for worker in {worker for worker, _ in operations}:
            numbers = [number for of, number in operations if of == worker]
            span = (min(numbers), max(numbers) + 1)
            said = subprocess.run(
                [*self._arguments[:2], "--print", str(worker), str(span[0]), str(span[1])],
                capture_output=True,
                text=True,
                check=True,
            )
            lines = said.stdout.splitlines()
            found |= {(worker, span[0] + n): line for n, line in enumerate(lines)}
        return [found[operation] for operation in operations]

    def _slots(self) -> list[ctypes.Structure]:
        return list(self._control.slots[: self._control.workers])
