"""The C core against the kernel: every answer is compared with what somebody else says."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from other_process import other

from sealsvc import extents, native
from sealsvc.model import ByteRange
from sealsvc.native import Mapping, Opener

pytestmark = pytest.mark.kernel

PAGE = 4096
KEEP_SIZE, PUNCH_HOLE = 0x1, 0x2
FIEMAP = 0xC020660B


@pytest.fixture(params=["xfs", "ext4"])
def fs(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def path(fs: Path) -> Iterator[Path]:
    made = fs / "file"
    made.write_bytes(bytes(16 * PAGE))
    yield made
    made.unlink()


@pytest.fixture
def opened(path: Path) -> Iterator[Callable[[int], int]]:
    """Open the file; closed at the end unless the test did."""
    with ExitStack() as stack:

        def open_it(flags: int = os.O_RDWR) -> int:
            fd = os.open(path, flags | os.O_CLOEXEC)
            stack.callback(close_quietly, fd)
            return fd

        yield open_it


def close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def inode(path: Path) -> tuple[int, int]:
    st = path.stat()
    return st.st_dev, st.st_ino


def raises(error: int) -> contextlib.AbstractContextManager[object]:
    return pytest.raises(OSError, match=re.escape(f"[Errno {error}]"))


# Extent maps


def punched(path: Path, pairs: int) -> int:
    """A file of `pairs` written pages with a hole behind each."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    os.posix_fallocate(fd, 0, 2 * pairs * PAGE)
    os.pwrite(fd, b"x" * (2 * pairs * PAGE), 0)
    os.fsync(fd)
    for i in range(pairs):
        native.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, (2 * i + 1) * PAGE, PAGE)
    os.fsync(fd)
    return fd


def naive_map(fd: int) -> list[list[int]]:
    """One extent at a time."""
    rows: list[list[int]] = []
    at = 0
    while True:
        buffer = bytearray(struct.pack("<QQIIII", at, 2**64 - 1 - at, 0, 0, 1, 0) + bytes(56))
        fcntl.ioctl(fd, FIEMAP, buffer)
        if struct.unpack_from("<I", buffer, 20)[0] == 0:
            return rows
        logical, physical, length, _, _, flags = struct.unpack_from("<QQQQQI", buffer, 32)
        rows.append([logical, physical, length, flags])
        at = logical + length
        if flags & extents.EXTENT_LAST:
            return rows


def filefrag(path: Path) -> list[tuple[int, int, int]]:
    text = subprocess.run(
        ["filefrag", "-v", f"-b{PAGE}", path], check=True, capture_output=True, text=True
    ).stdout
    rows = re.findall(r"^ *\d+: +(\d+)\.\. *\d+: +(\d+)\.\. *\d+: +(\d+):", text, re.M)
    return [(int(lo) * PAGE, int(ph) * PAGE, int(ln) * PAGE) for lo, ph, ln in rows]


@pytest.mark.parametrize("pairs", [1, 511, 512, 513, 1700])
def test_maps_in_several_batches(fs: Path, pairs: int) -> None:
    path = fs / "punched"
    fd = punched(path, pairs)
    try:
        found = native.read_extents(fd, None)
        assert found.tolist() == naive_map(fd)
        assert [tuple(row[:3]) for row in found.tolist()] == filefrag(path)
        assert len(found) == pairs
        assert (found.dtype, found.flags.owndata or found.base is not None) == (np.uint64, True)
    finally:
        os.close(fd)
        path.unlink()


def test_a_range_gives_what_overlaps_it(fs: Path) -> None:
    path = fs / "punched"
    fd = punched(path, 1500)
    try:
        whole = native.read_extents(fd, None)
        for sealed in [
            ByteRange(0, PAGE),
            ByteRange(PAGE, PAGE),
            ByteRange(100 * PAGE + 5, 1),
            ByteRange(700 * PAGE, 1400 * PAGE),
            ByteRange(2900 * PAGE, 2**60),
        ]:
            part = native.read_extents(fd, sealed)
            assert extents.same(part, whole, sealed)
            assert len(part) == len(extents.clip(whole, sealed))
    finally:
        os.close(fd)
        path.unlink()


def test_sync_writes_delayed_blocks(path: Path, opened: Callable[[int], int]) -> None:
    fd = opened(os.O_RDWR | os.O_TRUNC)
    os.pwrite(fd, b"x" * PAGE, 0)
    before = native.read_extents(fd, None)
    assert before[0, extents.FLAGS] & np.uint64(extents.EXTENT_DELALLOC)
    after = native.read_extents(fd, None, sync=True)
    assert extents.unsuitable(after, ByteRange(0, PAGE)) == []


def test_an_empty_file_has_no_extents(opened: Callable[[int], int]) -> None:
    fd = opened(os.O_RDWR | os.O_TRUNC)
    assert native.read_extents(fd, None).shape == (0, 4)


def test_what_has_no_map(opened: Callable[[int], int]) -> None:
    left, right = os.pipe()
    with raises(errno.EOPNOTSUPP):
        native.read_extents(left, None)
    os.close(left)
    os.close(right)
    with raises(errno.EBADF):
        native.read_extents(left, None)


def test_a_map_that_changes_meanwhile_ends_and_does_not_overlap(fs: Path) -> None:
    path = fs / "restless"
    fd = punched(path, 3000)
    stop = threading.Event()
    chance = random.Random(7)

    def disturb() -> None:
        while not stop.is_set():
            at = chance.randrange(6000) * PAGE
            native.fallocate(fd, chance.choice([0, PUNCH_HOLE | KEEP_SIZE]), at, 3 * PAGE)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(100):
            found = native.read_extents(fd, None)
            ends = found[:, extents.LOGICAL] + found[:, extents.LENGTH]
            assert (ends[:-1] <= found[1:, extents.LOGICAL]).all()
            assert (found[:, extents.LENGTH] > 0).all()
    finally:
        stop.set()
        thread.join()
        os.close(fd)
        path.unlink()


# Files


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "a" / "file").write_text("in")
    (tmp_path / "secret").write_text("out")
    (root / "link").symlink_to("a/file")
    (root / "dirlink").symlink_to("a")
    (root / "out").symlink_to("../secret")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("path", ["a/file", "a/../a/file", "./a//file"])
def test_open_beneath_opens(tree: int, path: str) -> None:
    fd = native.open_beneath(tree, path, os.O_RDONLY)
    assert os.read(fd, 9) == b"in"
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("link", errno.ELOOP),
        ("dirlink/file", errno.ELOOP),
        ("out", errno.ELOOP),
        ("../secret", errno.EXDEV),
        ("a/../../secret", errno.EXDEV),
        ("/etc/passwd", errno.EXDEV),
        ("missing", errno.ENOENT),
        ("a/file/x", errno.ENOTDIR),
    ],
)
def test_open_beneath_refuses(tree: int, path: str, error: int) -> None:
    with raises(error):
        native.open_beneath(tree, path, os.O_RDONLY)


def test_open_beneath_refuses_magic_links(tree: int) -> None:
    proc = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with raises(errno.ELOOP):
        native.open_beneath(proc, f"fd/{tree}", os.O_RDONLY)
    os.close(proc)


def test_generation_is_what_lsattr_says(path: Path, opened: Callable[[int], int]) -> None:
    said = subprocess.run(["lsattr", "-v", path], check=True, capture_output=True, text=True).stdout
    assert native.generation(opened(os.O_RDONLY)) == int(said.split()[0]) % 2**32


def test_pipes_have_no_generation_and_no_geometry() -> None:
    left, right = os.pipe()
    assert native.generation(left) is None
    assert native.xfs_geometry(left) is None
    os.close(left)
    os.close(right)


@pytest.mark.parametrize("name", ["xfs", "xfs_noreflink"])
def test_xfs_geometry(name: str, request: pytest.FixtureRequest) -> None:
    fd = os.open(request.getfixturevalue(name), os.O_RDONLY | os.O_CLOEXEC)
    assert native.xfs_geometry(fd) == native.XfsGeometry(PAGE, 1, name == "xfs")
    os.close(fd)


def test_extent_size_hints(path: Path, opened: Callable[[int], int]) -> None:
    fd = opened(os.O_RDWR | os.O_TRUNC)
    if native.xfs_geometry(fd) is None:
        native.set_extsize(fd, 1 << 16)
        assert native.fsxattr(fd).extsize == 0
        return
    native.set_extsize(fd, 1 << 16)
    assert (native.fsxattr(fd).extsize, native.fsxattr(fd).xflags & 0x800) == (1 << 16, 0x800)
    os.pwrite(fd, b"x", 0)
    os.fsync(fd)
    assert native.fsxattr(fd).nextents >= 1
    with raises(errno.EINVAL):
        native.set_extsize(fd, 1 << 17)


def test_statx_attributes(path: Path, opened: Callable[[int], int]) -> None:
    fd = opened(os.O_RDONLY)
    assert not native.statx_attributes(fd) & 0x10  # STATX_ATTR_IMMUTABLE
    subprocess.run(["chattr", "+i", path], check=True)
    try:
        assert native.statx_attributes(fd) & 0x10
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def test_populate_write_changes_no_byte(path: Path, opened: Callable[[int], int]) -> None:
    fd = opened(os.O_RDWR | os.O_TRUNC)
    os.posix_fallocate(fd, 0, 8 * PAGE)
    os.pwrite(fd, b"kept", 3 * PAGE)
    os.fsync(fd)
    whole = ByteRange(0, 8 * PAGE)
    assert {p.reason for p in extents.unsuitable(native.read_extents(fd, None), whole)} == {
        "unwritten"
    }
    native.populate_write(fd, 0, 8 * PAGE)
    os.fsync(fd)
    assert extents.unsuitable(native.read_extents(fd, None), whole) == []
    assert os.pread(fd, 8 * PAGE, 0).strip(b"\0") == b"kept"


def test_descriptors_of_another_process(path: Path, opened: Callable[[int], int]) -> None:
    mine = opened(os.O_RDONLY)
    with other("fd = os.open(sys.argv[1], os.O_RDWR); assert fd == 3; ready()", path) as pid:
        pidfd = native.pidfd_open(pid)
        theirs = native.pidfd_getfd(pidfd, 3)
        assert native.same_description(os.getpid(), theirs, pid, 3)
        assert not native.same_description(os.getpid(), mine, pid, 3)
        assert not os.get_inheritable(theirs)
        with raises(errno.EBADF):
            native.pidfd_getfd(pidfd, 99)
        os.close(theirs)
    with raises(errno.ESRCH):
        native.pidfd_getfd(pidfd, 3)
    os.close(pidfd)
    with pytest.raises(ProcessLookupError):
        native.pidfd_open(pid)


# Who else has hold of a file

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@contextmanager
def mapping(fd: int, offset: int = 0, kind: int = mmap.MAP_SHARED) -> Iterator[int]:
    """The address of 8 pages of the file. (mmap.mmap keeps a duplicate of the descriptor.)"""
    writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    address = _libc.mmap(None, 8 * PAGE, protection, kind, fd, offset)
    assert address != 2**64 - 1
    try:
        yield address
    finally:
        _libc.munmap(address, 8 * PAGE)


@contextmanager
def nobody(path: Path) -> Iterator[None]:
    yield


@contextmanager
def descriptor(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def mapped(path: Path, flags: int, kind: int = mmap.MAP_SHARED) -> Iterator[None]:
    """A mapping whose descriptor is closed."""
    with ExitStack() as stack:
        with descriptor(path, flags) as fd:
            stack.enter_context(mapping(fd, kind=kind))
        yield


@contextmanager
def in_flight(path: Path, flags: int) -> Iterator[None]:
    left, right = socket.socketpair()
    with left, right:
        with descriptor(path, flags) as fd:
            socket.send_fds(left, [b"x"], [fd])
        yield


Having = Callable[[Path], contextlib.AbstractContextManager[object]]
OTHERS: list[tuple[str, Having, bool, bool]] = [
    # How another has the file; whether F_RDLCK (on O_RDONLY), F_WRLCK (on O_RDWR) is granted.
    ("nobody", nobody, True, True),
    ("O_PATH", lambda p: descriptor(p, os.O_PATH), True, True),
    ("reader", lambda p: descriptor(p, os.O_RDONLY), True, False),
    ("writer", lambda p: descriptor(p, os.O_WRONLY), False, False),
    ("reading mapping", lambda p: mapped(p, os.O_RDONLY), True, False),
    ("writing mapping", lambda p: mapped(p, os.O_RDWR), False, False),
    ("private mapping", lambda p: mapped(p, os.O_RDONLY, mmap.MAP_PRIVATE), True, False),
    ("reader in flight", lambda p: in_flight(p, os.O_RDONLY), True, False),
    ("writer in flight", lambda p: in_flight(p, os.O_RDWR), False, False),
]


@pytest.mark.parametrize(
    ("how", "read", "write"), [o[1:] for o in OTHERS], ids=[o[0] for o in OTHERS]
)
def test_lease_probes(path: Path, how: Having, read: bool, write: bool) -> None:
    for flags, type, granted in [
        (os.O_RDONLY, fcntl.F_RDLCK, read),
        (os.O_RDWR, fcntl.F_WRLCK, write),
    ]:
        with descriptor(path, flags) as fd:
            with how(path):
                assert native.lease_probe(fd, type) is granted
            assert native.lease_probe(fd, type) is True
            assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK


def test_a_read_lease_on_a_writable_description_is_refused(path: Path) -> None:
    with descriptor(path, os.O_RDWR) as fd:
        assert not native.lease_probe(fd, fcntl.F_RDLCK)


def test_duplicates_share_the_description(path: Path) -> None:
    with descriptor(path, os.O_RDWR) as fd:
        again = os.dup(fd)
        assert native.lease_probe(fd, fcntl.F_WRLCK)
        os.close(again)


def test_a_probe_tells_other_errors_from_a_no(path: Path) -> None:
    with descriptor(path, os.O_PATH) as fd, raises(errno.EBADF):
        native.lease_probe(fd, fcntl.F_RDLCK)
    with descriptor(path.parent, os.O_RDONLY) as fd, raises(errno.EINVAL):
        native.lease_probe(fd, 77)


TOKEN = 2**62 - 1


@pytest.fixture
def anchor(path: Path) -> Iterator[int]:
    with descriptor(path, os.O_RDONLY) as fd:
        yield fd


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_a_token_is_seen_by_other_descriptions(path: Path, anchor: int, flags: int) -> None:
    with descriptor(path, flags) as fd:
        assert not native.token_held(anchor, TOKEN)
        native.token_set(fd, TOKEN)
        assert native.token_held(anchor, TOKEN)
        assert not native.token_held(anchor, TOKEN - 1)
        assert not native.token_held(fd, TOKEN)
        native.token_clear(fd, TOKEN)
        assert not native.token_held(anchor, TOKEN)
        native.token_set(fd, 0)
    assert not native.token_held(anchor, 0)


def test_two_descriptions_keep_two_tokens(path: Path, anchor: int) -> None:
    with descriptor(path, os.O_RDWR) as a:
        native.token_set(a, 1)
        with descriptor(path, os.O_WRONLY) as b:
            native.token_set(b, 2)
            assert native.token_held(a, 2)
            assert native.token_held(b, 1)
        assert (native.token_held(anchor, 1), native.token_held(anchor, 2)) == (True, False)


def test_a_token_has_62_bits(anchor: int) -> None:
    for call in native.token_set, native.token_clear, native.token_held:
        with raises(errno.EINVAL):
            call(anchor, 2**62)


def test_a_token_lives_as_long_as_its_description(path: Path, anchor: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    native.token_set(fd, TOKEN)
    again = os.dup(fd)
    os.close(fd)
    assert native.token_held(anchor, TOKEN), "a duplicate"
    with other("ready()", pass_fds=[again]):
        left, right = socket.socketpair()
        socket.send_fds(left, [b"x"], [again])
        with mapping(again):
            os.close(again)
            assert native.token_held(anchor, TOKEN), "a child, a message and a mapping"
        assert native.token_held(anchor, TOKEN), "a child and a message"
        left.close()
        right.close()
        assert native.token_held(anchor, TOKEN), "a child"
    assert not native.token_held(anchor, TOKEN)


def test_a_mapping_alone_keeps_the_token(path: Path, anchor: int) -> None:
    with ExitStack() as stack:
        with descriptor(path, os.O_RDWR) as fd:
            native.token_set(fd, TOKEN)
            stack.enter_context(mapping(fd))
        assert native.token_held(anchor, TOKEN)
    assert not native.token_held(anchor, TOKEN)


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
            everybody = native.mappings(0, device, number, WHOLE)
            assert len(everybody) == 3
            assert Mapping(os.getpid(), True, True, address, 0, 8 * PAGE) in everybody
        [theirs] = native.mappings(pid, device, number, WHOLE)
        assert (theirs.shared, theirs.offset, theirs.length) == (False, 2 * PAGE, 3 * PAGE)
        assert native.mappings(0, device, number + 1, WHOLE) == []
        assert native.mappings(0, tmp_path.stat().st_dev, number, WHOLE) == []
    with pytest.raises(ProcessLookupError):
        native.mappings(pid, device, number, WHOLE)


def test_processes_that_may_not_be_looked_into(path: Path) -> None:
    """One of them named is an error; in a walk over everybody they are passed over."""
    device, number = inode(path)

    def ask() -> None:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(PermissionError):
            native.mappings(pid, device, number, WHOLE)
        assert native.mappings(0, device, number, WHOLE) == []

    with other(MAP + "map_it(sys.argv[1], 0, 1); ready()", path) as pid:
        assert len(native.mappings(0, device, number, WHOLE)) == 1
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
        assert len(native.mappings(0, *inode(path), WHOLE)) == 300


def test_mappings_of_a_process_whose_leader_has_exited(path: Path) -> None:
    script = MAP + LEADERLESS + "leaderless(lambda: map_it(sys.argv[1], 0, 1))"
    with other(script, path) as pid:
        [found] = native.mappings(pid, *inode(path), WHOLE)
        assert (found.pid, found.length) == (pid, PAGE)
        assert [m.pid for m in native.mappings(0, *inode(path), WHOLE)] == [pid]


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
        "import sys; from sealsvc import native; from sealsvc.model import ByteRange;"
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
