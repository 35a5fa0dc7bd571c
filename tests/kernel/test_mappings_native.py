"""Mappings and openers of a file, in whichever process."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from held_files import (
    PAGE,
    descriptor,
    inode,
    mapping,
)
from other_process import other

from sealsvc.core.model import ByteRange
from sealsvc.linux import native
from sealsvc.linux.native import Mapping, Opener

pytestmark = pytest.mark.kernel

# mmap.mmap would keep a duplicate of the descriptor.
MAP = """
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
def map_it(path, offset, pages, flags=os.O_RDWR, kind=mmap.MAP_SHARED):
    fd = os.open(path, flags)
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if flags == os.O_RDWR else 0)
    assert libc.mmap(None, pages * 4096, protection, kind, fd, offset * 4096) != 2**64 - 1
    os.close(fd)
"""
# The leader exits; a thread does what is to be done and stays.
LEADERLESS = """
def leaderless(work):
    pid = os.getpid()
    leader = threading.get_native_id()
    def run():
        work()
        while "State:\tZ" not in open(f"/proc/{pid}/task/{leader}/status").read():
            pass
        ready()
        os._exit(0)
    threading.Thread(target=run).start()
    libc.syscall(SYS_EXIT, 0)
""".replace("SYS_EXIT", str({"x86_64": 60}.get(platform.machine(), 93)))


WHOLE = ByteRange(0, 2**63)


def readable(mappings: list[Mapping]) -> list[Mapping]:
    """Without the processes that a security module of the machine closes to everybody."""
    return [mapping for mapping in mappings if mapping.error != errno.EACCES]


def test_mappings_are_cut_to_the_range(path: Path) -> None:
    with descriptor(path, os.O_RDWR) as fd, mapping(fd, offset=4 * PAGE) as address:
        me = os.getpid()

        def found(offset: int, length: int) -> list[Mapping]:
            return native.mappings(me, *inode(path), ByteRange(offset, length))

        assert found(0, 2**64 - 1) == [Mapping(me, True, True, address, 4 * PAGE, 8 * PAGE)]
        assert found(5 * PAGE + 1, 10) == [
            Mapping(me, True, True, address + PAGE + 1, 5 * PAGE + 1, 10)
        ]
        assert found(11 * PAGE, 9 * PAGE) == [
            Mapping(me, True, True, address + 7 * PAGE, 11 * PAGE, PAGE)
        ]
        assert found(0, 4 * PAGE) == []
        assert found(12 * PAGE, PAGE) == []
    assert native.mappings(me, *inode(path), WHOLE) == []


def test_mappings_of_every_process(path: Path, tmp_path: Path) -> None:
    device, number = inode(path)
    script = MAP + "map_it(sys.argv[1], 2, 3, kind=mmap.MAP_PRIVATE); ready()"
    with other(script, path) as pid, other(script, path), descriptor(path, os.O_RDWR) as fd:
        with mapping(fd) as address:
            everybody = readable(native.mappings(0, device, number, WHOLE))
            assert len(everybody) == 3
            assert Mapping(os.getpid(), True, True, address, 0, 8 * PAGE) in everybody
        [theirs] = native.mappings(pid, device, number, WHOLE)
        assert (theirs.shared, theirs.offset, theirs.length) == (False, 2 * PAGE, 3 * PAGE)
        assert readable(native.mappings(0, device, number + 1, WHOLE)) == []
        assert readable(native.mappings(0, tmp_path.stat().st_dev, number, WHOLE)) == []
    with pytest.raises(ProcessLookupError):
        native.mappings(pid, device, number, WHOLE)


def test_processes_that_may_not_be_looked_into(path: Path) -> None:
    """They are named: they may map the file."""
    device, number = inode(path)

    def ask() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        assert [(m.pid, m.error) for m in native.mappings(pid, device, number, WHOLE)] == [
            (pid, errno.EACCES)
        ]
        everybody = native.mappings(0, device, number, WHOLE)
        assert (pid, errno.EACCES) in [(m.pid, m.error) for m in everybody]
        assert readable(everybody) == []

    with other(MAP + "map_it(sys.argv[1], 0, 1); ready()", path) as pid:
        assert len(readable(native.mappings(0, device, number, WHOLE))) == 1
        assert succeeds_in_a_child(ask)


def succeeds_in_a_child(work: Callable[[], None]) -> bool:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        work()
        os._exit(0)
    finally:  # pytest must not run on in the child
        os._exit(1)


def test_more_mappings_than_the_first_guess(path: Path) -> None:
    with descriptor(path, os.O_RDONLY) as fd, ExitStack() as stack:
        for i in range(300):
            stack.enter_context(mapping(fd, offset=(i % 2) * PAGE))
        assert len(readable(native.mappings(0, *inode(path), WHOLE))) == 300


def test_mappings_of_a_process_whose_leader_has_exited(path: Path) -> None:
    script = MAP + LEADERLESS + "leaderless(lambda: map_it(sys.argv[1], 0, 1))"
    with other(script, path) as pid:
        [found] = native.mappings(pid, *inode(path), WHOLE)
        assert (found.pid, found.length) == (pid, PAGE)
        assert [m.pid for m in readable(native.mappings(0, *inode(path), WHOLE))] == [pid]


NO_QUERY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *argument;
	va_start(ap, request);
	argument = va_arg(ap, void *);
	va_end(ap);
	if ((request & 0xffff) == 0x6611) {
		errno = ENOTTY;
		return -1;
	}
	return ((int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl"))(fd, request, argument);
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_kernels_without_procmap_query(path: Path, tmp_path: Path) -> None:
    """The text of maps gives the same answers (the ioctl exists since 6.11)."""
    library = tmp_path / "no_query.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=NO_QUERY, text=True, check=True)
    odd = path.with_name("odd (deleted)\n\\ name")
    os.link(path, odd)
    script = MAP + "m = [map_it(sys.argv[1], i % 3, 2) for i in range(int(sys.argv[2]))]; ready()"
    ask = (
        "import sys; from sealsvc.linux import native; from sealsvc.core.model import ByteRange;"
        "pid, device, inode = map(int, sys.argv[1:]);"
        "print([native.mappings(p, device, inode, ByteRange(4096, 5000)) for p in (pid, 0)])"
    )
    try:
        with other(script, odd, 1500) as pid:
            said = subprocess.run(
                [sys.executable, "-c", ask, *map(str, (pid, *inode(path)))],
                env={**os.environ, "LD_PRELOAD": str(library)},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            expected = [native.mappings(p, *inode(path), ByteRange(PAGE, 5000)) for p in (pid, 0)]
    finally:
        odd.unlink()
    assert len(expected[0]) == 1500
    assert said == repr(expected)


def openers(path: Path, except_pid: int = 0) -> list[Opener]:
    """With the flags that os.open was given."""
    return [
        Opener(o.pid, o.fd, o.flags & os.O_ACCMODE)
        for o in native.openers(*inode(path), except_pid)
    ]


def test_openers_are_found_and_named(path: Path) -> None:
    me = os.getpid()
    keep = "fd = os.open(sys.argv[1], {}); os.dup2(fd, 70); os.close(fd); ready()"
    with (
        descriptor(path, os.O_WRONLY) as fd,
        other(keep.format("os.O_RDWR"), path) as writer,
        other(keep.format("os.O_PATH"), path),
        other("ready()", pass_fds=[fd]) as heir,
    ):
        expected = {
            Opener(me, fd, os.O_WRONLY),
            Opener(writer, 70, os.O_RDWR),
            Opener(heir, fd, os.O_WRONLY),
        }
        assert set(openers(path)) == expected
        assert len(openers(path)) == 3
        assert {o.pid for o in openers(path, except_pid=me)} == {writer, heir}
    assert openers(path) == []


def test_openers_tell_all_flags(path: Path) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    with descriptor(path, flags):
        [found] = native.openers(*inode(path))
    assert found.flags & ~0o100000 == flags  # fdinfo adds O_LARGEFILE


def test_mappings_without_a_descriptor_are_openers(path: Path) -> None:
    closed = "m = [map_it(sys.argv[1], i, 1, os.{}) for i in range(3)]; ready()"
    both = "map_it(sys.argv[1], 0, 1); fd = os.open(sys.argv[1], 0); ready()"
    with (
        other(MAP + closed.format("O_RDWR"), path) as writer,
        other(MAP + closed.format("O_RDONLY"), path) as reader,
        other(MAP + both, path) as opener,
    ):
        found = openers(path)
        assert set(found) >= {Opener(writer, -1, os.O_RDWR), Opener(reader, -1, os.O_RDONLY)}
        assert [o.fd >= 0 for o in found if o.pid == opener] == [True]
        assert len(found) == 3


def test_openers_whose_leader_has_exited(path: Path) -> None:
    script = LEADERLESS + "leaderless(lambda: os.dup2(os.open(sys.argv[1], os.O_RDWR), 71))"
    with other(script, path) as pid:
        found = openers(path)
        assert {o.pid for o in found} == {pid}
        assert [o for o in found if o.fd == 71] == [Opener(pid, 71, os.O_RDWR)]


def test_a_thread_with_a_table_of_its_own(path: Path) -> None:
    script = """
opened = threading.Event()
def run():
    assert libc.unshare(0x400) == 0  # CLONE_FILES
    os.dup2(os.open(sys.argv[1], os.O_RDONLY), 72)
    opened.set()
    threading.Event().wait()
threading.Thread(target=run, daemon=True).start()
opened.wait()
ready()
os._exit(0)
"""
    with other(script, path) as pid:
        assert Opener(pid, 72, os.O_RDONLY) in openers(path)
