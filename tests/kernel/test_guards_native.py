"""The structures behind the gate's tables, each against a model of it, under sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ring.test_ring_native import FLAGS, INCLUDES, NATIVE, SANITIZERS, compiler, run

SOURCES = {
    "interval": ["base/interval.c"],
    "guards": ["base/interval.c", "gate/guards.c", "kernel/verdict.c"],
}


@pytest.mark.parametrize("sanitizer", ["plain", "address-undefined"])
@pytest.mark.parametrize("name", SOURCES)
def test_against_a_model(name: str, sanitizer: str, tmp_path: Path) -> None:
    flags = SANITIZERS[sanitizer]
    gcc, program = compiler("gcc", *flags), tmp_path / name
    sources = [NATIVE / "tests" / f"test_{name}.c", *(NATIVE / path for path in SOURCES[name])]
    run(gcc, *FLAGS, *flags, *INCLUDES, "-o", program, *sources)
    run(program)
