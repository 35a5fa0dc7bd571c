"""The bpf enforcer where BPF LSM programs may not be loaded, and what C and Python share."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sealsvc.core.model import Kind
from sealsvc.enforce.bpf import BpfEnforcer
from sealsvc.linux.filesystem import Filesystem
from sealsvc.linux.native import ffi, lib

XFS = Filesystem("/mnt", "xfs", "/dev/loop0", "rw", 0, reflink=True)

_OPEN = Path(find_spec("_sealsvc_native").origin).parent / "sealsvc" / "bpf" / "seal.bpf.o"  # type: ignore[union-attr, arg-type]
built = pytest.mark.skipif(not _OPEN.exists(), reason="built without clang or libbpf")


class NoKeeper:
    """Keeps nothing: the descriptors under test live in this process."""

    def keep(self, name: str, fd: int) -> None:
        pass

    def prover(self, fd: int) -> None:
        pass

    def canary(self, fd: int, trials: int) -> tuple[int, int]:
        return 0, 0

    def try_canary(self) -> tuple[int, int]:
        return 0, 0

    def drop(self, name: str) -> None:
        pass


def bpf(**options: Any) -> BpfEnforcer:
    return BpfEnforcer(NoKeeper(), **options)  # type: ignore[arg-type]


def test_structures_have_the_sizes_that_pinned_maps_have() -> None:
    sizes = {
        "struct seal_bpf_file": 16,
        "struct seal_bpf_range": 32,
        "struct seal_bpf_event": 152,
        "struct seal_bpf_seal": 24,
    }
    assert {name: ffi.sizeof(name) for name in sizes} == sizes
    assert ffi.sizeof("struct seal_bpf_event") - ffi.offsetof("struct seal_bpf_event", "comm") == 16
    tokens = ffi.typeof("struct seal_bpf_event").fields
    assert dict(tokens)["tokens"].type.length == lib.SEAL_BPF_TOKENS


def test_a_probe_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    enforcer = bpf(directory=tmp_path / "sealsvc")  # not on a bpffs
    reason = enforcer.probe()
    assert reason
    assert enforcer.probe() == reason, "a second probe finds the same"
    assert not (tmp_path / "sealsvc").exists()
    assert enforcer.closes(XFS, Kind.SHARED) == frozenset()
    enforcer.stop()
    enforcer.drain()
    enforcer.unpin()


@built
@pytest.mark.kernel
def test_a_kernel_that_refuses_the_programs_gives_the_reason(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a bpffs needs root")
    subprocess.run(["mount", "-t", "bpf", "bpf", str(tmp_path)], check=True)
    try:
        enforcer = bpf(directory=tmp_path / "sealsvc")
        reason = enforcer.probe()
        if reason:
            assert "Operation not permitted" in reason or "lsm=" in reason or "BTF" in reason
        enforcer.stop()
        assert not (tmp_path / "sealsvc").exists()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
