"""A PI channel without a device that keeps PI: what is refused, compared, or stopped before I/O.

What reaches a device is tests/lab/test_pi_device.py's.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _sealsvc_pi_device import ffi, lib

from sealsvc.core.model import ByteRange, FileId
from sealsvc.integrity import block_device, channels
from sealsvc.integrity.block_device import GUARDS, capability, name_of, opened, unsuitable
from sealsvc.integrity.channels import ErrorThrottle
from sealsvc.integrity.device_client import ALL, PiFile, PiIOError, PiTerms
from sealsvc.protocol.integrity import PiError
from sealsvc.protocol.pi_device import PiChannelInfo, PiPathInfo
from tests.lab.pi_tuples import place_of, tuples
from tests.support.refusals import refusal
from tests.support.waiting import PATIENCE

KiB = 1 << 10
MEMORY = 256 * KiB
SEALED = (64 * KiB, 128 * KiB)  # offset and length
LAYOUTS = {
    "t10-512": ("crc16-t10dif", 512, 8, 0, 8, 4),
    "t10-4096-ip": ("ip", 4096, 8, 0, 8, 4),
    "type3": ("crc16-t10dif", 512, 8, 0, 8, 0),
    "behind-metadata": ("crc16-t10dif", 512, 16, 8, 8, 4),
    "crc64": ("crc64-nvme", 4096, 16, 0, 16, 6),
    "crc64-behind": ("crc64-nvme", 4096, 64, 48, 16, 6),
}


def layout(name: str) -> PiPathInfo:
    guard, interval, metadata, offset, size, ref = LAYOUTS[name]
    return PiPathInfo(
        device="none", available=True, guard=guard, interval=interval, metadata=metadata,
        pi_offset=offset, pi_size=size, app_size=2, ref_size=ref, block=interval,
    )  # fmt: skip


@dataclass
class Served:
    """A channel with its thread; `raw` sends what libseal would not."""

    native: Any
    pi: PiFile
    raw: socket.socket
    thread: threading.Thread

    def stop(self) -> None:
        lib.seal_channel_stop(self.native)
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@contextmanager
def channel(device: PiPathInfo, file: Path, *, writable: bool = True) -> Iterator[Served]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    memory = os.memfd_create("test")
    os.ftruncate(memory, MEMORY)
    blocks = os.open(file, os.O_RDWR)
    map = np.array([[SEALED[0], 0, SEALED[1], 0]], dtype=np.uint64)
    rows = ffi.from_buffer("struct seal_extent[]", map)
    options = ffi.new(
        "struct seal_channel_options *",
        {
            "device": os.dup(blocks), "file": blocks, "socket": ours.detach(),
            "memory": os.dup(memory), "size": MEMORY, "writable": writable,
            "offset": SEALED[0], "length": SEALED[1], "extents": rows, "extent_count": 1,
            "layout": {
                "checked": 1, "interval": device.interval, "metadata": device.metadata,
                "pi_offset": device.pi_offset, "pi_size": device.pi_size, "app_size": 2,
                "guard": next(n for n, name in GUARDS.items() if name == device.guard),
                "ref_size": device.ref_size, "block": device.block,
            },
        },
    )  # fmt: skip
    out = ffi.new("struct seal_channel **")
    assert lib.seal_channel_open(options, out) == 0
    raw = socket.socket(fileno=os.dup(theirs.fileno()))
    info = PiChannelInfo(
        seal="", device=device, bytes=MEMORY, offset=SEALED[0], length=SEALED[1], writable=writable
    )

    def serve() -> None:
        report = ffi.new("struct seal_channel_report *")
        while lib.seal_channel_serve(out[0], report) == lib.SEAL_CHANNEL_FAILED:
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    with raw, PiFile(info, (theirs.detach(), memory)) as pi:
        served = Served(out[0], pi, raw, thread)
        try:
            yield served
        finally:
            served.stop()
            lib.seal_channel_close(out[0])
            os.close(blocks)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "blocks"
    path.write_bytes(bytes(SEALED[1]))
    return path


def failure(call: Any) -> PiIOError:
    with pytest.raises(PiIOError) as caught:
        call()
    return caught.value


# The same tuples as an implementation that is not ours


@pytest.mark.parametrize("name", LAYOUTS)
def test_tuples_are_compared_field_by_field(name: str, file: Path) -> None:
    device, data, first = layout(name), os.urandom(64 * KiB), 0xFFFFFFFF - 3
    terms = PiTerms(ALL, ALL, ("service",), tag=0x1234, reftag=first)
    with channel(device, file) as served:

        def write(tags: bytearray) -> PiIOError:
            return failure(lambda: served.pi.writev(SEALED[0], [data], tags, terms))

        width = device.pi_size - (10 if device.pi_size == 16 else 4)  # of the reference tag
        good = tuples(device, data, tag=0x1234, reftag=first, bits=8 * width)
        # All is right: the refusal is the kernel's, which takes no PI for a file.
        assert write(bytearray(good)).errno == errno.EINVAL
        for field in [f for f in ALL if f != "reftag" or device.ref_size]:
            for index in (0, 5, len(data) // device.interval - 1):
                bad = bytearray(good)
                bad[place_of(device, field, index)] ^= 0x10
                found = write(bad)
                failed = found.failure
                assert (found.errno, failed.checker, failed.field) == (
                    errno.EILSEQ, "service", field,
                )  # fmt: skip
                assert failed.offset == SEALED[0] + index * device.interval
                assert failed.sector == index * device.interval // 512
                assert failed.expected is not None
                assert failed.found == failed.expected ^ 0x10


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_not_provided_is_generated(name: str, file: Path) -> None:
    device, data = layout(name), os.urandom(32 * KiB)
    with channel(device, file) as served:
        for provided in ((), ("tag",), ("checksum", "tag")):
            good = tuples(device, data, tag=7, reftag=SEALED[0] // device.interval)
            tags = bytearray(good)
            for field in {*ALL} - {*provided} - ({"reftag"} if not device.ref_size else set()):
                for index in range(len(data) // device.interval):
                    tags[place_of(device, field, index)] ^= 0xFF
            terms = PiTerms(provided, ALL, ("service",), tag=7)
            assert failure(
                lambda t=tags, o=terms: served.pi.writev(SEALED[0], [data], t, o)
            ).errno == (errno.EINVAL)  # the kernel's: the service found nothing


# What is no request


def test_ranges_outside_of_the_seal_are_refused(file: Path) -> None:
    start, length = SEALED
    with channel(layout("t10-512"), file) as served:
        for offset, size, wanted in (
            (start - 512, 512, errno.ERANGE),
            (start, length + 512, errno.ERANGE),
            (start + length, 512, errno.ERANGE),
            (2**64 - 512, 512, errno.ERANGE),
            (start + 1, 512, errno.EINVAL),
        ):
            assert (
                failure(lambda o=offset, n=size: served.pi.readv(o, [bytearray(n)])).errno == wanted
            )
    with channel(layout("t10-512"), file, writable=False) as served:
        assert failure(lambda: served.pi.writev(start, [bytes(512)])).errno == errno.EBADF


def request(**fields: int) -> Any:
    made = ffi.new("struct seal_channel_request *")
    made.op, made.offset, made.length, made.pi = 1, SEALED[0], 4096, 8192
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    "fields",
    [
        {"op": 0}, {"op": 3}, {"flags": 2}, {"reserved": 1}, {"length": 0},
        {"length": 2**64 - 512}, {"offset": 2**64 - 4096}, {"provided": 8}, {"verify": 0x8000},
        {"checkers": 8}, {"data": 512}, {"data": MEMORY}, {"data": 2**64 - 4096},
        {"data": MEMORY - 4096, "length": 8192}, {"pi": MEMORY - 32}, {"pi": 2**64 - 8},
        {"pi": 4000}, {"data": 4096, "pi": 4096},
    ],
    ids=str,
)  # fmt: skip
def test_a_holder_that_lies_is_refused(fields: dict[str, int], file: Path) -> None:
    """Data and PI inside the shared memory and apart from each other, or nothing is done."""
    with channel(layout("t10-512"), file) as served:
        answer = ffi.new("struct seal_channel_answer *")
        served.raw.send(ffi.buffer(request(cookie=9, **fields)))
        assert served.raw.recv_into(ffi.buffer(answer)) == ffi.sizeof(answer[0])
        assert answer.cookie == 9
        assert -answer.status in (errno.EINVAL, errno.ERANGE, errno.EMSGSIZE)


@pytest.mark.parametrize("size", [1, 71, 73, 4096])
def test_what_is_no_request_ends_the_channel(size: int, file: Path) -> None:
    with channel(layout("t10-512"), file) as served:
        served.raw.send(bytes(size))
        served.thread.join(PATIENCE)
        assert not served.thread.is_alive()


def test_answers_that_nobody_reads_end_the_channel(file: Path) -> None:
    with channel(layout("t10-512"), file) as served:
        served.raw.setblocking(False)
        deadline = time.monotonic() + PATIENCE
        while served.thread.is_alive():
            assert time.monotonic() < deadline
            try:
                served.raw.send(ffi.buffer(request()))
            except (BlockingIOError, BrokenPipeError):
                time.sleep(0.001)


# The end


def test_a_stopped_channel_answers_and_ends(file: Path) -> None:
    with channel(layout("t10-512"), file) as served:
        served.stop()
        assert failure(lambda: served.pi.readv(SEALED[0], [bytearray(512)])).errno == errno.ESTALE


def test_a_stop_under_load_leaves_no_request_without_an_answer(file: Path) -> None:
    for _ in range(20):
        with channel(layout("t10-512"), file) as served:
            codes = list[int]()

            def ask(served: Served = served, codes: list[int] = codes) -> None:
                while codes[-1:] != [errno.ESTALE]:
                    read = failure(lambda: served.pi.readv(SEALED[0], [bytearray(512)]))
                    codes.append(read.errno or 0)

            asker = threading.Thread(target=ask)
            asker.start()
            while len(codes) < 3:
                time.sleep(0.0005)
            served.stop()
            asker.join(PATIENCE)
            assert not asker.is_alive()
            assert set(codes[:-1]) == {errno.EINVAL}


class Guard:
    """An enforcer's hold, of which is remembered what was done."""

    anchor, apart = -1, False

    def __init__(self) -> None:
        self.done = list[str]()

    def change(self, verdict: object) -> None:
        self.done.append(str(verdict))

    def resize(self, range: ByteRange) -> None:
        self.done.append(f"resized to {range.length}")

    def release(self) -> None:
        self.done.append("released")


def test_guards_are_let_go_when_nothing_is_in_flight(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, guard = layout("t10-512"), Guard()
    with channel(device, file) as served:
        kept = SimpleNamespace(seal_channel_stop=lib.seal_channel_stop, seal_channel_close=id)
        monkeypatch.setattr(channels, "lib", kept)  # the test closes it
        mine = channels.Channel(None, 0, device, served.native)  # type: ignore[arg-type]
        holds = channels.DrainedHolds([guard], mine)
        holds.change("busy")  # type: ignore[arg-type]
        holds.resize(ByteRange(0, 4096))
        holds.release()
        served.thread.join(PATIENCE)
        assert not served.thread.is_alive()  # releasing has stopped it
        assert guard.done == ["busy"]
        mine.has_drained()
        assert guard.done == ["busy", "resized to 4096", "released"]
        holds.release()
        assert guard.done[-1] == "released"
        assert mine.ended.is_set()


# Errors


def test_a_flood_of_errors_is_counted_and_none_is_lost() -> None:
    error = PiError(
        seq=0, time=0, kind="refused", at="write", attachment="", path="/f",
        file=FileId(1, 2), profile="", block=0, offset=0,
        length=512, field="", expected="", found="", physical=None, seal=None, holder=None,
        cookie=0, first_good=None, last_good=None,
    )  # fmt: skip
    told, began = ErrorThrottle(), time.monotonic()
    heard = [said for _ in range(1000) if (said := told.due(error))]
    last = told.rest()
    # Ten of each second.
    assert 10 <= len(heard) <= 10 * (time.monotonic() - began + 2)
    assert sum(said.more + 1 for said in [*heard, *filter(None, [last])]) == 1000


# Devices


def test_what_is_under_a_file_is_told_by_its_number(xfs: Path) -> None:
    device = os.stat(xfs).st_dev
    assert "is a loop device" in unsuitable(device)
    assert "is no block device" in unsuitable(os.stat("/proc").st_dev)
    fd = opened(device, writable=False)
    try:
        assert os.fstat(fd).st_rdev == device
        refused = refusal(lambda: capability(fd))
        assert refused.code == "device-path-unavailable"
        assert "FS_IOC_GETLBMD_CAP" in refused.message or "no protection" in refused.message
    finally:
        os.close(fd)


def test_a_node_that_is_another_device_is_not_used(
    xfs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name in /dev decides nothing."""
    name = name_of(os.stat(xfs).st_dev)
    monkeypatch.setattr(block_device, "_node_name", lambda device: name)
    refused = refusal(lambda: opened(os.makedev(259, 7), writable=False))
    assert refused.message == f"/dev/{name} is not device 259:7"


# The page cache


def cached(fd: int, offset: int, length: int) -> int:
    """Pages, by both ways to ask."""
    found = ffi.new("struct pi_cache[2]")
    for mapping in (0, 1):
        out = ffi.addressof(found, mapping)
        assert lib.pi_cache_look(fd, offset, length, mapping, out) == 0
    assert found[0].cached == found[1].cached
    assert found[0].dirty <= found[1].dirty
    return int(found[0].cached)


def test_the_page_cache_is_counted_and_dropped(xfs: Path) -> None:
    path, size = xfs / "cached", 8 << 20
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, os.urandom(size), 0)  # dirty, in large folios
        assert cached(fd, 0, size) == size // 4096
        assert lib.pi_cache_drop(fd, 12 * KiB, 64 * KiB) == 0
        assert cached(fd, 12 * KiB, 64 * KiB) == 0
        with mmap.mmap(fd, size) as mapped:
            assert mapped[12 * KiB] == os.pread(fd, 1, 12 * KiB)[0]
            assert lib.pi_cache_drop(fd, 12 * KiB, 4096) == -errno.EBUSY
            assert cached(fd, 12 * KiB, 4096) == 1
        assert lib.pi_cache_drop(fd, 12 * KiB, 4096) == 0
    finally:
        os.close(fd)
        path.unlink()
