"""Copies through a ring (SEAL_CMD_COPY_RANGE): between files that are registered and sealed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sealsvc.client.ring import RingClient
from sealsvc.core.model import IoMode
from tests.model.fiemap import places
from tests.ring.conftest import BLOCK, SIZE
from tests.support.service import Running

pytestmark = [pytest.mark.kernel]


@pytest.fixture
def other(file: Path) -> Iterator[int]:
    """A second file of the same size."""
    path = file.with_name(f"{file.name}-other")
    path.write_bytes(os.urandom(SIZE))
    made = os.open(path, os.O_RDWR)
    os.fsync(made)
    yield made
    os.close(made)
    path.unlink()


def test_a_copy_keeps_what_is_sealed(client: RingClient, fd: int, other: int) -> None:
    """Bytes arrive on the device, and no block of either file moves, is shared or is recalled."""
    before = places(fd, 0, SIZE), places(other, 0, SIZE)
    expected = bytearray(os.pread(other, SIZE, 0))
    expected[3 * BLOCK + 5 : 3 * BLOCK + 5 + 100_000] = os.pread(fd, 100_000, BLOCK + 7)
    source, there = client.register(fd), client.register(other)
    with client.grant(source, 0, SIZE) as one, client.grant(there, 0, SIZE) as two:
        assert client.copy(source, BLOCK + 7, there, 3 * BLOCK + 5, 100_000) == 100_000
        assert one.valid
        assert two.valid
    assert os.pread(other, SIZE, 0) == expected
    assert (places(fd, 0, SIZE), places(other, 0, SIZE)) == before


def test_a_copy_within_one_file(client: RingClient, fd: int) -> None:
    moved = os.pread(fd, 2 * BLOCK, 0)
    registered = client.register(fd)
    assert client.copy(registered, 0, registered, 4 * BLOCK, 2 * BLOCK) == 2 * BLOCK
    assert os.pread(fd, 2 * BLOCK, 4 * BLOCK) == moved
    with pytest.raises(OSError, match="Invalid") as overlapping:
        client.copy(registered, 0, registered, BLOCK, 2 * BLOCK)
    assert overlapping.value.errno == errno.EINVAL


def test_only_what_is_registered_is_copied(client: RingClient, fd: int, other: int) -> None:
    """The rights of a copy are those of the registrations."""
    source = client.register(fd, length=4 * BLOCK)
    there = client.register(other, iomode=IoMode.READ)
    before = os.pread(other, SIZE, 0)

    def refused(*arguments: int) -> int | None:
        with pytest.raises(OSError, match="seal_copy_bytes") as refusal:
            client.copy(*arguments)
        return refusal.value.errno

    assert refused(source, 3 * BLOCK, source, 0, 2 * BLOCK) == errno.EINVAL
    assert refused(source, 0, there, 0, BLOCK) == errno.EACCES
    assert refused(source, 0, 7, 0, BLOCK) == errno.EBADF
    assert os.pread(other, SIZE, 0) == before


def test_a_copy_goes_on_after_a_restart(
    client: RingClient, fd: int, other: int, running: Running
) -> None:
    """What was asked for while no service ran is done by the next."""
    source, there = client.register(fd), client.register(other)
    wanted = os.pread(fd, SIZE, 0)
    running.kill()
    starting = threading.Timer(0.2, running.start)
    starting.start()
    try:
        copied = client.copy(source, 0, there, 0, SIZE)
    except TimeoutError:
        copied = 0  # the keeper waits for 30 s: a machine may be slower
    starting.join()
    running.ready()
    assert copied in (0, SIZE)
    assert os.pread(other, copied, 0) == wanted[:copied]
