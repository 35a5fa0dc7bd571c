"""The BPF programs for proofs: who maps a file, by which description, and what is left of one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from held_files import PAGE, descriptor, mapping
from other_process import other

from sealsvc.core.model import ByteRange, Mark
from sealsvc.linux.host.proofs import Prover
from sealsvc.linux.native import ffi, lib

pytestmark = pytest.mark.kernel
WHOLE = ByteRange(0, 16 * PAGE)


@pytest.fixture(scope="module")
def prover() -> Prover:
    made = Prover.load()
    if made.why:
        pytest.skip(made.why)
    return made


@pytest.fixture
def anchor(path: Path) -> Iterator[int]:
    with descriptor(path, os.O_RDONLY) as fd:
        yield fd


def described(prover: Prover, fd: int) -> Mark:
    mark = prover.describe(fd)
    assert mark is not None
    return mark


def test_without_programs_nothing_is_told(path: Path, anchor: int) -> None:
    nothing, mark = Prover(), Mark(file=1, cred=1)
    assert nothing.mapped == -1
    assert nothing.is_mapped(anchor) is None
    assert nothing.describe(anchor) is None
    assert nothing.is_alive(anchor, mark) is None
    assert nothing.held(anchor, mark, WHOLE) is None
    assert nothing.first_referenced(0, 1) is None
    assert not nothing.can_see_references()


def test_in_a_pid_namespace_no_process_is_judged_by_its_number(
    prover: Prover, path: Path, anchor: int
) -> None:
    """There, of all programs, only the one that takes numbers of processes is absent."""
    programs = ffi.new("struct seal_proofs *", prover._programs[0])
    programs.held = -1
    with descriptor(path, os.O_RDWR) as fd:
        assert Prover(programs).held(anchor, described(prover, fd), WHOLE) is None


def test_with_and_without_programs_the_kernel_waits_or_not(prover: Prover) -> None:
    assert prover.waits == Prover().waits


def test_a_mapping_by_whomever_is_seen(prover: Prover, path: Path, anchor: int) -> None:
    assert prover.is_mapped(anchor) is False
    with descriptor(path, os.O_RDWR) as fd, mapping(fd):
        assert prover.is_mapped(anchor) is True
    assert prover.is_mapped(anchor) is False


def test_a_description_lives_as_long_as_anything_refers_to_it(
    prover: Prover, path: Path, anchor: int
) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    mark = described(prover, fd)
    again = os.dup(fd)
    os.close(fd)
    assert prover.is_alive(anchor, mark), "a duplicate"
    with other("ready()", pass_fds=[again]):
        left, right = socket.socketpair()
        socket.send_fds(left, [b"x"], [again])
        with mapping(again):
            os.close(again)
            assert prover.is_alive(anchor, mark), "a child, a message and a mapping"
        assert prover.is_alive(anchor, mark), "a child and a message"
        left.close()
        right.close()
        assert prover.is_alive(anchor, mark), "a child"
    assert prover.is_alive(anchor, mark) is False


def test_a_description_of_another_file_is_not_taken_for_it(
    prover: Prover, path: Path, anchor: int
) -> None:
    """As when the memory of one that is gone serves another."""
    elsewhere = path.with_name("elsewhere")
    elsewhere.write_bytes(bytes(PAGE))
    with descriptor(elsewhere, os.O_RDWR) as fd:
        assert prover.is_alive(anchor, described(prover, fd)) is False
    elsewhere.unlink()
    with descriptor(path, os.O_RDWR) as fd:
        mark = described(prover, fd)
        assert prover.is_alive(anchor, Mark(file=mark.file, cred=mark.cred + 64)) is False


MAP = """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
def map_it(fd, page): libc.mmap(None, 4096, 1, 1, fd, page * 4096); os.close(fd)
"""


def test_mappings_are_told_by_their_description(prover: Prover, path: Path, anchor: int) -> None:
    with descriptor(path, os.O_RDWR) as fd:
        mark = described(prover, fd)
        own = MAP + "map_it(int(sys.argv[1]), 4); ready()"
        foreign = MAP + "map_it(os.open(sys.argv[1], os.O_RDONLY), 4); ready()"
        with other(own, fd, pass_fds=[fd]) as heir, other(foreign, path) as stranger:
            held = prover.held(anchor, mark, ByteRange(4 * PAGE, PAGE))
            assert held is not None
            assert not held.unseen, "the descriptor here and the mapping there are all there is"
            rows = {pid: maps for pid, maps in held.rows if maps > 0}
            assert rows == {heir: lib.SEAL_MAPS_BY_DESCRIPTION, stranger: lib.SEAL_MAPS_OTHERWISE}
            beside = prover.held(anchor, mark, ByteRange(0, 4 * PAGE))
            assert beside is not None
            assert [row for row in beside.rows if row[1] > 0] == []


LEADERLESS = (
    MAP
    + """
def work():
    while "State:\\tZ" not in open(f"/proc/{os.getpid()}/task/{os.getpid()}/status").read():
        pass
    map_it(os.open(sys.argv[1], os.O_RDONLY), 0)
    ready()
    os._exit(0)
threading.Thread(target=work).start()
libc.syscall(60, 0)
"""
)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="exit(2) is 60 on x86-64")
def test_a_process_whose_leader_has_exited(prover: Prover, path: Path, anchor: int) -> None:
    with other(LEADERLESS, path) as pid:
        held = prover.held(anchor, described(prover, anchor), WHOLE)
        assert held is not None
        assert (pid, lib.SEAL_MAPS_OTHERWISE) in held.rows


def test_in_another_pid_namespace_processes_are_not_told_by_their_numbers(
    prover: Prover, path: Path
) -> None:
    if prover._program("held") < 0:
        pytest.skip("this kernel does not tell it anyhow (before Linux 6.10)")
    code = (
        "from sealsvc.linux.host.proofs import Prover; p = Prover.load();"
        "print(p.mapped >= 0, p._program('held') >= 0)"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    assert (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True False\n"
    )
