"""No memory of another task is ever read: a page of it may come from FUSE or from userfaultfd(2),
and whoever reads it waits for as long as its owner likes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import _sealsvc_native
import pytest

from sealsvc.enforce import keeper_start

NATIVE = Path(_sealsvc_native.__file__)
READS = {"process_vm_readv", "process_vm_writev", "ptrace"}


PROGRAMS = [Path(keeper_start._program()), NATIVE]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_no_call_reads_the_memory_of_a_task(program: Path) -> None:
    listed = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", program], capture_output=True, text=True, check=True
    )
    wanted = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
    assert "read" in wanted, "the list is of what it calls"
    assert not wanted & READS
    assert not re.findall(rb"/proc/[%\w/]*/mem\0", program.read_bytes())


def test_python_reads_none_either() -> None:
    root = Path(sys.modules["sealsvc"].__path__[0])
    sources = {path: path.read_text() for path in root.rglob("*.py")}
    assert len(sources) > 100
    assert [path for path, text in sources.items() if re.search(r"/mem\b[\"']", text)] == []
