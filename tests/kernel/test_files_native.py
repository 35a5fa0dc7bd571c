"""Opening below a root, and what a file is, as the C core tells it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from held_files import (
    PAGE,
    raises,
)
from other_process import other

from sealsvc.core import extents
from sealsvc.core.model import ByteRange
from sealsvc.linux import native

pytestmark = pytest.mark.kernel


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
    geometry = native.xfs_geometry(fd)
    assert geometry is not None
    assert (geometry.block_size, geometry.rt_extent_blocks) == (PAGE, 1)
    assert geometry.reflink == (name == "xfs")
    assert any(geometry.uuid)
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
