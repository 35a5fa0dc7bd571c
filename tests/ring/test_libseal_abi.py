"""Programs that are linked with libseal go on working: its table of the ABI does not change."""

from __future__ import annotations

import re

from tests.ring import libseal_abi
from tests.ring.test_ring_native import compiler, library, run


def committed() -> set[str]:
    return set(libseal_abi.TABLE.read_text().splitlines())


def test_layouts_and_symbols_are_the_committed_ones() -> None:
    """See tests/ring/libseal_abi.py for what may be added, and how."""
    compiler("gcc")
    found = libseal_abi.layout() | libseal_abi.mapped_symbols()
    assert sorted(found - committed()) == []
    assert sorted(committed() - found) == []


def test_the_built_library_has_the_committed_symbols() -> None:
    said = run("nm", "-D", "--defined-only", library())
    built = {f"symbol {name}@{version}" for name, version in re.findall(r" T (\w+)@@(\w+)", said)}
    assert built == {line for line in committed() if line.startswith("symbol ")}


def test_the_table_says_something_of_everything_public() -> None:
    """Neither a structure nor a function is missed by the patterns that read the headers."""
    table = "\n".join(sorted(committed()))
    for name in libseal_abi.HEADERS:
        text = libseal_abi.COMMENT.sub("", (libseal_abi.LIBSEAL / name).read_text())
        for struct in re.findall(r"^struct (\w+) \{", text, re.MULTILINE):
            assert f"struct {struct} size " in table
        for function in re.findall(r"^(?!static)[a-z][\w *]*?\b(seal_\w+)\(", text, re.MULTILINE):
            assert f"symbol {function}@" in table
        for constant in re.findall(r"^\t(SEAL_\w+)\b.*,", text, re.MULTILINE):
            assert f"constant {constant} " in table


def test_structures_that_grow_begin_with_their_size() -> None:
    for name in ("seal_options", "seal_file_options", "seal_pi_io"):
        assert f"struct {name} size at 0 size 8" in committed()
