"""A client that writes nonsense over everything it can write to: others do not notice."""

from __future__ import annotations

import mmap
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.protocol.rings import Attach, Attached, Register
from tests.ring.conftest import BLOCK, truncating
from tests.support.service import Running
from tests.support.waiting import until

pytestmark = [pytest.mark.kernel]


def test_a_ring_is_spoilt_by_its_own_client_alone(
    running: Running, client: RingClient, fd: int, file: Path
) -> None:
    registered = client.register(fd)
    kept = client.grant(registered, 0, BLOCK)
    chance = random.Random(3)
    for _ in range(20):
        with Client(str(running.socket)) as bad:
            attached = bad.call(Attach, slots=4, commands=1024, events=4, data=4096)
            assert isinstance(attached.result, Attached)
            memory, _, kick, _ = attached.fds
            try:
                reply = bad.call(Register, ring=attached.result.ring, path=str(file), kind="shared")
                os.close(reply.fds[0])
                with mmap.mmap(memory, 0) as area:
                    for _ in range(20):
                        at = chance.choice([0, 64, 128, chance.randrange(len(area) - 256)])
                        area[at : at + 200] = chance.randbytes(200)
                        with suppress(OSError):  # the doorbell, too
                            os.write(kick, chance.choice([b"\1" + bytes(7), b"\xfe" + b"\xff" * 7]))
            finally:
                for one in attached.fds:
                    os.close(one)
        client.grant(registered, BLOCK, BLOCK).give_back()
    assert kept.valid
    with truncating(file, 0) as process:
        until(lambda: not kept.valid)
        assert process.poll() is None
        kept.refresh()
        kept.give_back()


def test_the_bell_cannot_be_taken_from_the_keeper(running: Running) -> None:
    """What a client has of it is an epoll set: nothing can be written there."""
    with Client(str(running.socket)) as bad:
        attached = bad.call(Attach, slots=4)
        try:
            with pytest.raises(OSError, match="Invalid argument"):
                os.write(attached.fds[3], b"\xfe" + b"\xff" * 7)
        finally:
            for one in attached.fds:
                os.close(one)
