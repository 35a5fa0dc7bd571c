"""Lease probes and tokens: who else has hold of a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from held_files import (
    descriptor,
    in_flight,
    mapped,
    mapping,
    nobody,
    raises,
)
from other_process import other

from sealsvc.linux import native

pytestmark = pytest.mark.kernel

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


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_token_is_seen_by_other_descriptions(path: Path, anchor: int, flags: int) -> None:
    with descriptor(path, flags) as fd:
        assert not native.token_held(anchor, TOKEN)
        assert native.token_set(fd, TOKEN) == TOKEN
        assert native.token_held(anchor, TOKEN)
        assert not native.token_held(anchor, TOKEN - 2)
        assert not native.token_held(fd, TOKEN)
        native.token_clear(fd, TOKEN)
        assert not native.token_held(anchor, TOKEN)
        native.token_set(fd, TOKEN)
    assert not native.token_held(anchor, TOKEN)


def test_two_descriptions_keep_two_tokens(path: Path, anchor: int) -> None:
    with descriptor(path, os.O_RDWR) as a:
        native.token_set(a, TOKEN)
        with descriptor(path, os.O_RDONLY) as b:
            native.token_set(b, TOKEN + 2)
            assert native.token_held(a, TOKEN + 2)
            assert native.token_held(b, TOKEN)
        assert native.token_held(anchor, TOKEN)
        assert not native.token_held(anchor, TOKEN + 2)


def test_two_tokens_of_one_description_stay_apart(path: Path, anchor: int) -> None:
    """The kernel makes one lock of two of one owner that touch."""
    with descriptor(path, os.O_RDWR) as fd:
        for token in TOKEN, TOKEN + 2:
            native.token_set(fd, token)
        assert [native.token_held(anchor, TOKEN + i) for i in (0, 1, 2)] == [True, False, True]


def test_a_token_is_at_most_the_largest_offset(anchor: int) -> None:
    for call in native.token_set, native.token_clear, native.token_held:
        with raises(errno.EINVAL):
            call(anchor, 2**63)


def lock(fd: int, kind: int, start: int, length: int = 0) -> None:
    """A record lock; up to the end without `length`."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


@pytest.mark.parametrize("start", [1 << 20, 1 << 40, TOKEN])
def test_a_token_gives_way_to_the_write_lock_of_another(
    path: Path, anchor: int, start: int
) -> None:
    with descriptor(path, os.O_RDWR) as fd, descriptor(path, os.O_RDWR) as theirs:
        lock(theirs, fcntl.F_WRLCK, start)
        token = native.token_set(fd, TOKEN)
        assert path.stat().st_size < token < start
        assert native.token_held(anchor, token)
    assert not native.token_held(anchor, token)


def test_read_locks_of_others_are_not_taken_for_a_token(path: Path, anchor: int) -> None:
    """Whether they were there before the token, or come after it."""
    with descriptor(path, os.O_RDWR) as before, descriptor(path, os.O_RDWR) as after:
        lock(before, fcntl.F_RDLCK, 0)
        with descriptor(path, os.O_RDWR) as fd:
            token = native.token_set(fd, TOKEN)
            lock(after, fcntl.F_RDLCK, token - 2)
            assert native.token_held(anchor, token)
        assert not native.token_held(anchor, token)


def test_a_lock_of_everything_leaves_no_room_for_a_token(path: Path) -> None:
    with descriptor(path, os.O_RDWR) as fd, descriptor(path, os.O_RDWR) as theirs:
        lock(theirs, fcntl.F_WRLCK, 0)
        with raises(errno.EAGAIN):
            native.token_set(fd, TOKEN)


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
