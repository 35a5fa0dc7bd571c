"""The target core by itself, under sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ring.test_ring_native import FLAGS, INCLUDES, NATIVE, SANITIZERS, compiler, run

CORE = NATIVE / "exports" / "core"


@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_the_gate_and_the_copies(sanitizer: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    gcc, program = compiler("gcc", *flags), tmp_path / "test_exports"
    sources = [NATIVE / "tests" / "test_exports.c", CORE / "gate.c", CORE / "memory.c"]
    run(gcc, *FLAGS, *flags, *INCLUDES, f"-I{CORE}", "-o", program, *sources, "-lpthread")
    run(program, *([sanitizer] if flags else []))
