"""An operation is judged by what the kernel does, not by what its caller can write: registers of
workers, high bits of arguments, memory that others share, other system call tables."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_conflicts import RANGE, extents_of, shared

from sealsvc.client import Client
from sealsvc.protocol.seals import Return
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
PROLOGUE = """
import ctypes, fcntl, mmap, os, struct, sys
from sealsvc.doctor import syscalls, uring
path = sys.argv[1]
fd = os.open(path, os.O_RDWR)
libc = ctypes.CDLL(None, use_errno=True)
page = mmap.mmap(-1, 65536)
address = syscalls.address(page)

def entry(opcode, sqe_flags=0, **fields):
    made = uring.Entry(opcode, fields.pop("fd", fd), **fields)
    packed = bytearray(made.packed)
    packed[1] = sqe_flags
    made.packed = bytes(packed)
    return made

def called(number, *arguments):
    result = libc.syscall(number, *(ctypes.c_long(a) for a in arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "call")
    return result

try:
    exec(sys.argv[2])
except OSError as error:
    sys.exit(error.errno)
"""
ASYNC, SQPOLL, HIGH = 16, 2, 1 << 32
# In the sealed range [64 KiB, 256 KiB), or from before it to its end.
REFUSED = {
    "worker-punch": f"uring.submit(entry(17, {ASYNC}, off=65536, addr=65536, length=3))",
    "sqpoll-punch": f"uring.submit(entry(17, off=65536, addr=65536, length=3), {SQPOLL})",
    "worker-truncate": f"uring.submit(entry(55, {ASYNC}, off=65536))",
    "worker-open-truncate": "os.close(uring.open_path(path, os.O_RDWR | os.O_TRUNC))",
    "madvise-high-bits": (
        "mapped = mmap.mmap(fd, 1 << 20); "
        f"called(28, syscalls.address(mapped) + 65536, 65536, {HIGH} | 9)"
    ),
    "fallocate-high-bits": f"called(285, fd, {HIGH} | 3, 65536, 65536)",
    "openat-high-bits": (
        "name = ctypes.create_string_buffer(path.encode()); "
        f"called(257, -100, ctypes.addressof(name), {HIGH} | os.O_RDWR | os.O_TRUNC, 0)"
    ),
    "openat2-truncate": (
        "name = ctypes.create_string_buffer(path.encode()); "
        "how = ctypes.create_string_buffer(struct.pack('QQQ', os.O_RDWR | os.O_TRUNC, 0, 0)); "
        "called(437, -100, ctypes.addressof(name), ctypes.addressof(how), 24)"
    ),
}
PASSES = {
    "uring-read": "uring.submit(entry(22, off=65536, addr=address, length=4096))",
    "worker-read": f"uring.submit(entry(22, {ASYNC}, off=65536, addr=address, length=4096))",
    "sqpoll-read": f"uring.submit(entry(22, off=65536, addr=address, length=4096), {SQPOLL})",
    "aio-read": "uring._AIO_PWRITE = 0; uring.aio_write(fd, page, 65536, 0)",
    "sendfile": (
        "other = os.open(path + '.other', os.O_RDWR | os.O_CREAT); "
        "os.unlink(path + '.other'); os.sendfile(other, fd, 65536, 4096)"
    ),
    "splice": "r, w = os.pipe(); os.splice(fd, w, 4096, offset_src=65536)",
    "preadv2": "os.preadv(fd, [page], 65536, os.RWF_HIPRI)",
    "pwritev2": "os.pwritev(fd, [page[:4096]], 65536, os.RWF_DSYNC)",
    "willneed": (
        "mapped = mmap.mmap(fd, 1 << 20); called(28, syscalls.address(mapped) + 65536, 65536, 3)"
    ),
    "handle": "os.close(os.open('/proc/self/fd/%d' % fd, os.O_RDWR))",
}


def run(path: Path, code: str) -> int:
    intruder = [sys.executable, "-c", PROLOGUE, str(path), code]
    return subprocess.run(intruder, cwd=ROOT, timeout=PATIENCE, check=False).returncode


@pytest.fixture
def sealed(client: Client, file: Path) -> Iterator[Path]:
    seal = shared(client, file, conflict="refuse")
    yield file
    client.call(Return, seal=seal)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_disguised_is_refused(sealed: Path, name: str) -> None:
    before = extents_of(sealed)
    assert run(sealed, REFUSED[name]) == errno.ETXTBSY
    assert extents_of(sealed) == before


@pytest.mark.parametrize("name", PASSES)
def test_what_is_proven_to_be_harmless_passes(sealed: Path, name: str) -> None:
    before = extents_of(sealed)
    assert run(sealed, PASSES[name]) == 0
    assert extents_of(sealed) == before


@pytest.mark.parametrize("name", ["uring", "worker", "aio"])
def test_a_write_that_may_be_atomic_passes_where_none_is(
    sealed: Path, root: Path, name: str
) -> None:
    """XFS with reflink writes atomically through its copy-on-write fork since v6.16."""
    before = extents_of(sealed)
    status = run(
        sealed,
        "uring.aio_write(fd, page, 65536, 0)"
        if name == "aio"
        else f"uring.submit(entry(23, {ASYNC if name == 'worker' else 0}, off=65536,"
        " addr=address, length=4096))",
    )
    if "-ext4-" in str(root):
        assert status == 0
    else:
        assert status in (0, errno.ETXTBSY)
    assert extents_of(sealed) == before


IA32 = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
static long call(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    /* The sixth argument is in %ebp, which the compiler may want for itself. */
    asm volatile("push %%rbp; mov %7, %%rbp; int $0x80; pop %%rbp"
             : "=a"(result)
             : "a"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e), "r"(f)
             : "memory", "r8", "r9", "r10", "r11");
    return result;
}
int main(int argc, char **argv)
{
    int fd = open(argv[1], O_RDWR);
    char *low = mmap((void *)0x20000000, 4096, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (fd < 0 || low == MAP_FAILED)
        return 100;
    long result = 0;
    switch (argv[2][0]) {
    case 'r': result = call(180, fd, (long)low, 4096, 65536, 0, 0); break; /* pread64 */
    case 't': result = call(93, fd, 65536, 0, 0, 0, 0); break; /* ftruncate */
    case 'p': result = call(324, fd, 3, 65536, 0, 65536, 0); break; /* fallocate */
    case 'o': strcpy(low, argv[1]); result = call(5, (long)low, O_RDWR | O_TRUNC, 0, 0, 0, 0);
    }
    return result < 0 ? -result : 0;
}
"""


@pytest.fixture(scope="module")
def ia32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that enters the kernel by int $0x80, with numbers of the 32-bit table."""
    made = tmp_path_factory.mktemp("ia32") / "ia32"
    made.with_suffix(".c").write_text(IA32)
    subprocess.run(["gcc", "-O1", "-o", made, made.with_suffix(".c")], check=True)
    probe = subprocess.run([made, "/dev/zero", "r"], check=False).returncode
    if probe != 0:
        pytest.skip("the kernel has no 32-bit system calls")
    return made


@pytest.mark.parametrize(
    ("what", "status"),
    [("r", 0), ("t", errno.ETXTBSY), ("p", errno.ETXTBSY), ("o", errno.ETXTBSY)],
)
def test_32_bit_system_calls(sealed: Path, ia32: Path, what: str, status: int) -> None:
    before = extents_of(sealed)
    assert subprocess.run([ia32, sealed, what], timeout=PATIENCE, check=False).returncode == status
    assert extents_of(sealed) == before


SHARING = {
    "clone-into": "fcntl.ioctl(fd, 0x4020940d, struct.pack('qQQQ', fd, 0, 65536, 786432))",
    "copy-into": "os.copy_file_range(fd, fd, 65536, 524288, 786432)",
    "unshare": "called(285, fd, 0x40, 524288, 65536)",
}


@pytest.mark.parametrize("name", SHARING)
def test_sharing_beside_a_seal_conflicts_where_blocks_are_shared(
    sealed: Path, root: Path, name: str
) -> None:
    before = extents_of(sealed)
    status = run(sealed, SHARING[name])
    if "-xfs-" in str(root):
        assert status == errno.ETXTBSY
    assert extents_of(sealed)[: len(before)] == before or name == "copy-into"


def test_the_range_of_these_tests_leaves_room_beside_it() -> None:
    assert RANGE["offset"] + RANGE["length"] <= 524288
