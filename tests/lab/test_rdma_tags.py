"""End to end: RDMA writes into a sealed range that has tags. What is corrupted behind the service's
back is found at the return, and named; a service that is killed in the middle of a write leaves
nothing that is called clean and is wrong, and loses no error."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.integrity import engine
from sealsvc.integrity.profiles import built_in, parse
from sealsvc.integrity.store import BlockState, open_all
from sealsvc.protocol.integrity import (
    PiAttach,
    PiAttachment,
    PiAttachments,
    PiError,
    PiErrors,
    PiOpen,
    PiTag,
    PiVerify,
)
from sealsvc.protocol.seals import Extents, List, RecallSeals, SealInfo
from tests.faults.conftest import serve
from tests.lab.pmem import mounted_dax
from tests.lab.test_holders import EXAMPLES, _line, holding, rdma, the_seal
from tests.support.service import RISKS, Running
from tests.support.waiting import until

pytestmark = [
    pytest.mark.lab(cpus=2),
    pytest.mark.timeout(1500),
    pytest.mark.usefixtures("rdma"),
]
__all__ = ["rdma"]
MiB, BLOCK = 1 << 20, 4096
AT, BLOCKS = 3 * BLOCK, 24  # of what RDMA writes
WRITTEN = ByteRange(AT, BLOCKS * BLOCK)
TEXT = "tags of what RDMA wrote. " * 4000  # all but the last block, whole
DEVICE = Path("/dev/pmem0")
SLOW = 600.0  # seconds: an emulated processor that others share


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Target and initiator of the example."""
    made = tmp_path_factory.mktemp("rdma")
    command = ["make", "-C", str(EXAMPLES / "rdma"), f"OUT={made}"]
    subprocess.run(command, check=True, capture_output=True, timeout=SLOW)
    return made


@pytest.fixture
def root() -> Iterator[Path]:
    with mounted_dax("xfs") as point:
        yield point


@pytest.fixture
def running(root: Path, tmp_path: Path) -> Iterator[Running]:
    # Without bpf: its programs take long to be loaded there, and change nothing here.
    made = Running(tmp_path, [root], RISKS + '[enforcers]\nuse = ["fanotify"]\n')
    yield made
    made.end()


def begin(running: Running, faults: str = "") -> None:
    """Start the service; with `faults` it takes longer: its code is imported anew."""
    serve(running, faults) if faults else running.start()
    until(running.socket.exists, SLOW, "the service's socket")
    running.ready()


class Target:
    """An RDMA target that holds a sealed file with tags; `client` is an operator's."""

    def __init__(
        self, client: Client, process: subprocess.Popen[str], where: Path, program: Path
    ) -> None:
        self.client, self.process = client, process
        self.initiator = [str(program), str(where), str(AT), TEXT]
        said = [_line(process) for _ in range(3)]
        assert said[1:] == ["registered on demand", "ready"], said
        self.seal: SealInfo = the_seal(client)
        made = client.call(
            PiAttach, seal=self.seal.id, profile="crc32c-4k", writes="declared", quiet=True
        ).result
        assert isinstance(made, PiAttachment)
        self.attachment = made.id

    def write(self) -> None:
        done = subprocess.run(
            self.initiator, capture_output=True, text=True, check=False, timeout=SLOW
        )
        assert done.stdout == "written\n", done.stderr

    def place(self, offset: int) -> int:
        for extent in self.client.call(Extents, seal=self.seal.id).result.extents:
            if extent.logical <= offset < extent.logical + extent.length:
                return extent.physical + offset - extent.logical
        raise AssertionError(f"no extent has {offset}")

    def corrupt(self, block: int) -> int:
        """A bit of a block, on the device. Returns where the block lies there."""
        place = self.place(block * BLOCK)
        fd = os.open(DEVICE, os.O_RDWR)
        try:
            byte = os.pread(fd, 1, place + 100)[0]
            os.pwrite(fd, bytes([byte ^ 4]), place + 100)
            os.fsync(fd)
        finally:
            os.close(fd)
        return place

    def blocks(self) -> dict[str, int]:
        (found,) = self.client.call(PiAttachments, attachment=self.attachment).result.attachments
        return {state: count for state, count in found.blocks.items() if count}

    def give_back(self) -> None:
        self.client.call(RecallSeals, seal=self.seal.id)
        assert self.process.wait(SLOW) == 0
        until(lambda: not self.client.call(List).result.seals)

    def errors(self) -> list[PiError]:
        return list(self.client.call(PiErrors).result.errors)


@contextmanager
def target(running: Running, file: Path, directory: Path, programs: Path) -> Iterator[Target]:
    file.write_bytes(os.urandom(MiB))
    where = directory / "target.sock"
    options = ("--require", "map_sync,populate", "--prepare", "convert", "--")
    with (
        Client(str(running.socket), timeout=SLOW) as client,
        holding(running, file, *options, programs / "target", where) as process,
    ):
        yield Target(client, process, where, programs / "initiator")


def test_corruption_of_what_rdma_wrote_is_found_at_the_return(
    running: Running, root: Path, tmp_path: Path, programs: Path
) -> None:
    begin(running)
    file = root / "region"
    with target(running, file, tmp_path, programs) as it:
        it.client.call(PiOpen, seal=it.seal.id, range=WRITTEN)
        it.write()
        it.client.call(PiTag, seal=it.seal.id, range=WRITTEN)
        report = it.client.call(PiVerify, attachment=it.attachment, quiet=True).result
        assert report.blocks == {"good": MiB // BLOCK}
        right = file.read_bytes()
        assert right[AT : AT + len(TEXT)] == TEXT.encode()
        places = {block: it.corrupt(block) for block in (5, 200)}  # by RDMA, and before it
        it.give_back()
        found = {error.block: error for error in it.errors()}
        assert found.keys() == places.keys()
        wrong = file.read_bytes()
        for block, error in found.items():
            assert (error.kind, error.at, error.field) == ("corrupt", "return", "checksum")
            assert (error.path, error.seal) == (str(file), it.seal.id)
            assert (error.offset, error.length) == (block * BLOCK, BLOCK)
            assert error.physical == places[block]
            assert {error.expected, error.found} == {tag_of(right, block), tag_of(wrong, block)}
        assert it.blocks() == {"clean": MiB // BLOCK - 2, "suspect": 2}


def tag_of(data: bytes, block: int) -> str:
    part = data[block * BLOCK : (block + 1) * BLOCK]
    return engine.generate(built_in()["crc32c-4k"], part).tobytes().hex()


@pytest.mark.parametrize("moment", ["opened", "writing", "written", "tagging"])
def test_killed_in_the_middle_of_a_write(
    running: Running, root: Path, tmp_path: Path, programs: Path, moment: str
) -> None:
    begin(running, "integrity:marked=kill" if moment == "tagging" else "")
    with target(running, root / "region", tmp_path, programs) as it:
        it.corrupt(200)
        report = it.client.call(PiVerify, attachment=it.attachment, quiet=True).result
        assert report.blocks["corrupt"] == 1
        before = it.errors()
        assert [(error.kind, error.block) for error in before] == [("corrupt", 200)]
        it.client.call(PiOpen, seal=it.seal.id, range=WRITTEN)
        _killed_at(moment, it, running)
        it.client.reconnect(SLOW)
        blocks = it.blocks()
        assert blocks.get("open", 0) + blocks["suspect"] == BLOCKS + 1
        assert blocks["clean"] == MiB // BLOCK - BLOCKS - 1
        assert it.errors()[0] == before[0]
        it.give_back()
        assert it.blocks() == {"clean": MiB // BLOCK - BLOCKS - 1, "suspect": BLOCKS + 1}
        assert "suspect" in {error.kind for error in it.errors()}
        assert it.errors()[0] == before[0]
        if moment != "opened":
            assert (root / "region").read_bytes()[AT : AT + len(TEXT)] == TEXT.encode()
    running.stop()
    assert wrong_but_clean(running) == 0


def _killed_at(moment: str, it: Target, running: Running) -> None:
    """The service is killed there, and another has taken its seals over."""
    if moment == "writing":
        with subprocess.Popen(it.initiator, stdout=subprocess.PIPE) as initiator:
            running.kill()
            assert initiator.wait(SLOW) == 0
    else:
        if moment != "opened":
            it.write()
        if moment == "tagging":
            with pytest.raises(Refusal):
                it.client.call(PiTag, seal=it.seal.id, range=WRITTEN)
            assert running.process is not None
            assert running.process.wait(SLOW) == -signal.SIGKILL
        else:
            running.kill()
    begin(running)


def wrong_but_clean(running: Running) -> int:
    """With no service there: blocks that are called clean, and that the engine finds wrong."""
    stores, errors = open_all(running.directory / "registry/integrity")
    assert not errors
    (store,) = stores
    try:
        profile = parse(store.about.profile, "store")
        data = Path(store.about.path).read_bytes()
        _, found = engine.verify(profile, data, store.tags(0, store.blocks), most=store.blocks)
        states = store.states(0, store.blocks)
        return sum(states[error.block] == BlockState.CLEAN for error in found)
    finally:
        store.close()
