"""References to the pages of a DAX file that outlive every mapping of it: does the kernel wait for
them before it frees their blocks, and if not, does a return?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.linux.host.proofs import Prover
from sealsvc.linux.native import ffi, lib
from sealsvc.protocol.seals import Return
from tests.lab.dax_files import make
from tests.lab.kernels import SERIES
from tests.lab.pmem import is_held, mounted_dax
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE

pytestmark = [
    pytest.mark.lab(cpus=2),
    pytest.mark.timeout(600),
    pytest.mark.parametrize("lab_kernel", SERIES),
]
MiB = 1 << 20
OLDER = ("6.12", "6.1")  # they do not wait
BLOCK = 4096
AT = 16 * BLOCK


@contextmanager
def referenced(path: Path, offset: int) -> Iterator[None]:
    """A page of the file in a pipe: neither a mapping of it is left, nor a descriptor."""
    ends = ffi.new("int[2]")
    fd = os.open(path, os.O_RDWR)
    assert lib.seal_pin(fd, offset, ends) == 0
    os.close(fd)
    try:
        yield
    finally:
        for end in ends:
            os.close(end)


@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_what_is_said_of_the_kernel_is_so(fstype: str, lab_kernel: str) -> None:
    waits = Prover.load().waits
    assert waits == Prover().waits == (lab_kernel not in OLDER)
    with mounted_dax(fstype) as root:
        path = make(root / "file", MiB)
        with referenced(path, AT):
            code = "import os, sys; os.truncate(sys.argv[1], 0)"
            intruder = subprocess.Popen([sys.executable, "-c", code, str(path)])
            assert is_held(intruder) == waits
        assert intruder.wait(PATIENCE) == 0


@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_a_seal_ends_when_its_pages_are_not_referenced_any_more(
    fstype: str, lab_kernel: str, tmp_path: Path
) -> None:
    """Where the kernel waits by itself, that is not needed."""
    prover = Prover.load()
    if lab_kernel in OLDER:
        assert prover.can_see_references()
    with mounted_dax(fstype) as root:
        path = make(root / "file", MiB)
        running = Running(tmp_path, [root], RISKS)
        running.start()
        try:
            running.ready()
            with Client(str(running.socket), timeout=PATIENCE) as client:
                reply = client.grant(path=str(path), kind="shared", conflict="refuse")
                assert "page-references" not in reply.seal.accepted_risks
                os.close(reply.fds[0])
                with referenced(path, AT):
                    if not prover.waits:
                        refused = refusal(lambda: client.call(Return, seal=reply.seal.id))
                        assert refused.code == "still-mapped"
                        assert f"{AT}:{BLOCK} are referenced" in refused.message
                assert client.call(Return, seal=reply.seal.id).seal.state == "returned"
        finally:
            running.end()
