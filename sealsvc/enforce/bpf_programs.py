"""The BPF programs of the bpf enforcer, and the map in which they find the guards."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sealsvc.core.errors import Refusal
from sealsvc.enforce import guards
from sealsvc.enforce.base import Guard, Verdict
from sealsvc.linux.native import ffi, lib

_FRONTS = {
    "": lib.SEAL_BPF_ALONE,
    "fanotify": lib.SEAL_BPF_BEHIND_FANOTIFY,
    "lease": lib.SEAL_BPF_BEHIND_LEASE,
}
_MAX_PROGRAMS = 64
# Two programs for one hook, whose parameters changed between kernels; they count as one.
_SETATTRS = frozenset({"setattr_by_idmap", "setattr_by_dentry"})


@dataclass(frozen=True, slots=True)
class Program:
    """A program. `misses` is how often the kernel skipped it; `spared`: another program makes up
    for that."""

    name: str
    state: int
    spared: bool
    misses: int
    why: str


def objects() -> Path:
    """The directory of the programs: beside the extension module that loads them."""
    spec = find_spec("_sealsvc_native")
    beside = Path(spec.origin).parent if spec and spec.origin else Path()
    return beside / "sealsvc" / "bpf"


class NotLoaded(Exception):
    """The programs cannot be loaded, for the reason that is the text."""


class Programs:
    """Loaded programs and their maps (struct seal_bpf). Methods that change or read a map raise
    Refusal `io-error`."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    @classmethod
    def load(cls, directory: Path, without: Sequence[str]) -> Programs:
        """Load, attach and pin the programs below `directory`, but for those named `without`; or
        take over those that are pinned there. Raises NotLoaded."""
        path = objects() / "seal.bpf.o"
        if not path.exists():
            raise NotLoaded("built without clang or without libbpf: there are no BPF programs")
        out, why = ffi.new("struct seal_bpf **"), ffi.new("char[]", 512)
        result: int = lib.seal_bpf_open(
            os.fsencode(path),
            os.fsencode(directory),
            ",".join(without).encode(),
            out,
            why,
            len(why),
        )
        if result < 0:
            raise NotLoaded(ffi.string(why).decode(errors="replace") or os.strerror(-result))
        return cls(out[0])

    def close(self) -> None:
        """Let go of the programs. What is pinned goes on."""
        lib.seal_bpf_close(self.raw)

    def states(self) -> list[Program]:
        """Every program that was to be loaded."""
        out = ffi.new("struct seal_bpf_program[]", _MAX_PROGRAMS)
        count = lib.seal_bpf_programs(self.raw, out, _MAX_PROGRAMS)
        return [
            Program(text(p.name), int(p.state), bool(p.spared), int(p.misses), text(p.why))
            for p in (out[i] for i in range(count))
        ]

    def on(self) -> set[str]:
        """Names of the programs that are loaded."""
        return {p.name for p in self.states() if p.state == lib.SEAL_BPF_ON}

    def missing(self) -> dict[str, str]:
        """The reasons why programs are off, by name. The two for setattr count as one."""
        names = {p.name: p.why for p in self.states() if p.state == lib.SEAL_BPF_OFF}
        on = self.on()
        for name in _SETATTRS:
            why = names.pop(name, "")
            if why and not on & _SETATTRS:
                names["setattr"] = why
        return names

    # The map of guards

    def put(self, key: Any, generation: int, reflink: bool, guard: Guard) -> None:
        """Enter or change a guard in the BPF map. `key` is a struct seal_bpf_file. Raises Refusal
        `limit-reached` or `io-error`."""
        struct = ffi.new(
            "struct seal_bpf_range *",
            {
                "start": guard.range.offset,
                "end": guard.range.end,
                "token": guard.token,
                "holder": guard.holder,
                "exclusive": int(guard.exclusive),
                "policy": _policy(guard),
                "front": _front(guard),
            },
        )
        result: int = lib.seal_bpf_put(self.raw, key, generation, int(reflink), struct)
        if result in (-errno.ENOSPC, -errno.E2BIG):
            limit = lib.SEAL_BPF_RANGES if result == -errno.ENOSPC else "no more"
            raise Refusal("limit-reached", f"the bpf enforcer keeps {limit} seals on one file")
        check(result, "bpf_map_update_elem")

    def take(self, key: Any, token: int) -> None:
        """Remove a guard."""
        lib.seal_bpf_take(self.raw, key, token)

    def guards(self) -> list[tuple[int, int, int]]:
        """(device, inode, token) of every guard. The devices are in the kernel's own encoding
        (MKDEV)."""
        room = 1024
        while True:
            out = ffi.new("struct seal_bpf_seal[]", room)
            count = check(lib.seal_bpf_list(self.raw, out, room), "bpf_map_get_next_key")
            if count <= room:
                return [(out[i].file.device, out[i].file.inode, out[i].token) for i in range(count)]
            room = count + 64


def unpin(directory: Path) -> bool:
    """Remove the pins below `directory`, also those of a service that has ended, so that nothing is
    refused any more. False when there were none. Raises OSError."""
    if not directory.exists():
        return False
    result: int = lib.seal_bpf_unpin(os.fsencode(directory))
    if result < 0:
        raise OSError(-result, os.strerror(-result), str(directory))
    return True


def _front(guard: Guard) -> int:
    watched = guard.verdict is Verdict.WATCH
    return int(lib.SEAL_BPF_BEHIND_WATCH if watched else _FRONTS[guard.behind])


def _policy(guard: Guard) -> int:
    watched = guard.verdict is Verdict.WATCH
    return int(guards.POLICIES[Verdict.WAIT if watched else guard.verdict])


def text(raw: Any) -> str:
    """A C string of the kernel as text."""
    return bytes(ffi.string(raw)).decode(errors="replace")


def check(result: int, call: str) -> int:
    """The result of a call; raises Refusal `io-error` if it is -errno."""
    if result < 0:
        raise Refusal(
            "io-error", f"{call}: {os.strerror(-result)}", {"call": call, "errno": -result}
        )
    return result
