"""Lease probes and tokens: who else has hold of a file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from having import (
    descriptor,
    in_flight,
    mapped,
    mapping,
    nobody,
    raises,
)
from other_process import other

from sealsvc import native

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
