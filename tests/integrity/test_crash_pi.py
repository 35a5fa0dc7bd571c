"""SIGKILL of the service in the middle of writing tags: what is left is suspect, never clean and
wrong."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.integrity import engine
from sealsvc.integrity.profiles import built_in, parse
from sealsvc.integrity.store import BlockState, TagStore, open_all
from sealsvc.protocol.integrity import PiAttach, PiAttachments, PiErrors, PiOpen, PiTag, PiVerify
from sealsvc.protocol.seals import Reclaim, Return
from tests.faults.conftest import serve
from tests.integrity.conftest import BLOCK, Ground, attach, give_back, sealed
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.kernel
MiB = 1 << 20
SIZE = 4 * MiB


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with mounted("xfs") as point:
        running = Running(tmp_path, [point], RISKS)
        try:
            yield Ground(point, running)
        finally:
            running.end()


def kept(ground: Ground) -> Path:
    return ground.running.directory / "registry/integrity"


def killed(running: Running) -> None:
    assert running.process is not None
    assert running.process.wait(PATIENCE) == -signal.SIGKILL


def wrong_but_clean(ground: Ground) -> tuple[int, dict[str, int]]:
    """With no service there: blocks that are called clean and are not, found by the engine alone;
    and how many there are of each state."""
    stores, errors = open_all(kept(ground))
    assert not errors
    (store,) = stores
    try:
        profile = parse(store.about.profile, "store")
        data = Path(store.about.path).read_bytes()
        _, found = engine.verify(profile, data, store.tags(0, store.blocks), most=store.blocks)
        states = store.states(0, store.blocks)
        return sum(states[error.block] == BlockState.CLEAN for error in found), store.counts()
    finally:
        store.close()


@pytest.mark.parametrize("point", ["integrity:marked", "integrity:tagged"])
def test_killed_while_a_return_writes_tags(ground, point):
    serve(ground.running, f"{point}=kill@2")
    ground.running.ready()
    with ground.client() as client:
        seal, fd = sealed(client, ground.file("file", SIZE))
        attach(client, seal)
        os.pwrite(fd, os.urandom(SIZE), 0)
        os.close(fd)
        with pytest.raises(Refusal):
            client.call(Return, seal=seal.id)
    killed(ground.running)
    wrong, counts = wrong_but_clean(ground)
    assert (wrong, counts["suspect"], counts["open"]) == (0, 256, 512)
    serve(ground.running)
    ground.running.ready()
    with ground.client() as client:
        client.call(Reclaim, seal=seal.id)
        (attachment,) = client.call(PiAttachments).result.attachments
        assert attachment.blocks["open"] == 512  # the seal lives: they may still be written
        give_back(client, seal)
        report = client.call(PiVerify, attachment=attachment.id).result
        # The part that was cut off stays suspect, though its data may well be right.
        assert report.blocks == {"good": 768, "suspect": 256}
    ground.running.stop()
    assert wrong_but_clean(ground)[0] == 0


def test_killed_while_an_attachment_is_built(ground):
    serve(ground.running, "integrity:built=kill")
    ground.running.ready()
    with ground.client() as client:
        seal, fd = sealed(client, ground.file("file"))
        os.close(fd)
        with pytest.raises(Refusal):
            client.call(PiAttach, seal=seal.id, profile="crc32c-4k")
    killed(ground.running)
    serve(ground.running)
    ground.running.ready()
    with ground.client() as client:
        assert client.call(PiAttachments).result.attachments == []
        assert [path.name for path in kept(ground).iterdir() if path.is_dir()] == []
        client.call(Reclaim, seal=seal.id)
        attach(client, seal)
        give_back(client, seal)


def test_killed_with_open_blocks_whose_seal_is_gone(ground):
    """The machine's own restart is like this: nobody can say how far the writer came."""
    serve(ground.running)
    ground.running.ready()
    with ground.client() as client:
        seal, fd = sealed(client, ground.file("file"))
        attach(client, seal)
    ground.running.kill()
    os.close(fd)
    from sealsvc.runtime.config import ServiceSection
    from sealsvc.service.release import release

    release(ServiceSection(socket=ground.socket))
    serve(ground.running)
    ground.running.ready()
    with ground.client() as client:
        (attachment,) = client.call(PiAttachments).result.attachments
        assert attachment.blocks["suspect"] == MiB // BLOCK
        (error,) = client.call(PiErrors).result.errors
        assert (error.kind, error.at) == ("suspect", "start")


def test_an_error_outlives_the_service_that_found_it(ground):
    serve(ground.running)
    ground.running.ready()
    with ground.client() as client:
        seal, fd = sealed(client, ground.file("file"))
        attachment = attach(client, seal)
        place = ground.place(client, seal.id, 3 * BLOCK)
        give_back(client, seal, fd)
        ground.corrupt(place, b"?")
        found = client.call(PiVerify, attachment=attachment.id).result.errors
    ground.running.kill()
    serve(ground.running)
    ground.running.ready()
    with ground.client() as client:
        assert client.call(PiErrors).result.errors == found
        assert client.call(PiVerify, attachment=attachment.id).result.verdict == "suspect"


def test_killed_at_any_moment(ground):
    """A holder writes, opens and has tagged at random, and the service is killed at random."""
    generator = random.Random(11)
    path = ground.file("file", SIZE)
    serve(ground.running)
    ground.running.ready()
    with ground.client() as client:
        seal, fd = sealed(client, path)
        attach(client, seal, writes="declared", quiet=True)
    for _ in range(2):
        timer = threading.Timer(generator.uniform(0.05, 0.4), ground.running.process.kill)
        timer.start()
        with suppress(Refusal, OSError), Client(ground.socket, timeout=PATIENCE) as client:
            client.call(Reclaim, seal=seal.id)
            while True:
                at = generator.randrange(SIZE // BLOCK - 64) * BLOCK
                part = ByteRange(at, generator.randrange(1, 64) * BLOCK)
                client.call(PiOpen, seal=seal.id, range=part)
                os.pwrite(fd, os.urandom(part.length), part.offset)
                client.call(PiTag, seal=seal.id, range=part)
        timer.join()
        killed(ground.running)
        wrong, counts = wrong_but_clean(ground)
        assert wrong == 0, counts
        serve(ground.running)
        ground.running.ready()
    with ground.client() as client:
        client.call(Reclaim, seal=seal.id)
        give_back(client, seal, fd)


def test_a_store_is_one_writers(tmp_path):
    from sealsvc.core.model import FileId
    from sealsvc.integrity.store import About, StoreError
    from sealsvc.protocol.integrity import Writes

    profile = built_in()["crc32c-4k"]
    about = About(
        id="0" * 16,
        file=FileId(1, 2, 3),
        path="/x",
        profile=profile.described(),
        range=ByteRange(0, 8 * BLOCK),
        uncovered=0,
        tag=0,
        storage=0,
        secret="",
        writes=Writes.ANY,
        at_grant=False,
        owner=0,
        made=time.time(),
    )
    parts = [(np.full((4, 4), n, np.uint8), np.zeros(4, np.uint8)) for n in (1, 2)]
    store = TagStore.build(tmp_path, about, iter(parts))
    assert store.tags(3, 2).tolist() == [[1] * 4, [2] * 4]
    with pytest.raises(StoreError, match="another process"):
        TagStore(store.directory)
    store.close()
    again = TagStore(store.directory)
    assert again.blocks == 8
    again.remove()
    assert list(tmp_path.iterdir()) == []
