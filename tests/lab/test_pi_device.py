"""The device path: protection information of the application's, to the blocks of a sealed file.

On scsi_debug and on QEMU's NVMe, both of which check by themselves.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from _sealsvc_pi_device import ffi, lib

from sealsvc.client import Client
from sealsvc.client.ring import RingClient
from sealsvc.core.model import ByteRange
from sealsvc.integrity.device_client import ALL, PiFile, PiIOError, PiRing, PiTerms, Place
from sealsvc.linux import native
from sealsvc.protocol.integrity import PiErrors
from sealsvc.protocol.pi_device import PiPath, PiPathInfo
from sealsvc.protocol.seals import RecallSeals, Return
from tests.lab.pi_devices import MiB, mounted, nvme_disk, scsi_disk, sh
from tests.lab.pi_tuples import place_of, tuples
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running
from tests.support.waiting import until

NAMESPACES = (
    "ms=8,pi=1",
    "ms=8,pi=2,logical_block_size=4096,physical_block_size=4096",
    "ms=8,pi=3",
    "ms=8,pi=1",  # for partitions and device-mapper
)
pytestmark = [
    pytest.mark.lab(pmem=0, memory=2048, nvme=NAMESPACES),
    pytest.mark.timeout(1200),
]
SCSI = {
    "scsi-1-512": {"dif": 1},
    "scsi-3-512-ip": {"dif": 3, "guard": 1},
    "scsi-1-4096-ip": {"dif": 1, "guard": 1, "sector": 4096},
    "scsi-3-4096": {"dif": 3, "sector": 4096},
}
# Metadata of 16 bytes is for test_channel.py: on such a namespace of QEMU 7.2 the kernel itself
# cannot mount what mkfs.xfs has just made (EILSEQ).
NVME = {f"nvme-{number}": number for number in range(1, 4)}
DATA = bytes(range(256)) * 256  # 64 KiB
SLOW = 600.0  # seconds: an emulated processor that others share
TAG = 0x5EA1
BLKRRPART = 0x125F  # include/uapi/linux/fs.h


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pi")


@pytest.fixture(scope="module")
def running(base: Path) -> Iterator[Running]:
    # Without bpf: its programs take long to be loaded there, and change nothing here.
    made = Running(base, [base], RISKS + '[enforcers]\nuse = ["fanotify"]\n')
    made.start()
    until(made.socket.exists, SLOW, "the service's socket")  # programs load slowly in there
    made.ready()
    yield made
    made.end()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(str(running.socket), timeout=SLOW) as made:
        yield made


def make(path: Path, size: int = MiB) -> Path:
    path.write_bytes(bytes(size))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


@dataclass
class Sealed:
    """A sealed file with its channel. `fd` is the holder's own descriptor."""

    client: Client
    id: str
    fd: int
    pi: PiFile
    path: Path
    offset: int = 4096
    is_held: bool = True
    heard: int = 0

    def give_back(self) -> None:
        if self.is_held:
            self.is_held = False
            self.pi.close()
            os.close(self.fd)
            self.client.call(Return, seal=self.id)

    @property
    def device(self) -> PiPathInfo:
        return self.pi.info.device

    def write(self, tags: bytearray | None, data: bytes = DATA, **terms: object) -> int:
        return self.pi.writev(self.offset, [data], tags, PiTerms(**terms))  # type: ignore[arg-type]

    def read(self, **terms: object) -> tuple[bytes, bytes]:
        data = bytearray(len(DATA))
        tags = bytearray(self.pi.tuples(len(DATA)))
        self.pi.readv(self.offset, [data], tags, PiTerms(**terms))  # type: ignore[arg-type]
        return bytes(data), bytes(tags)

    def good(self, data: bytes = DATA, tag: int = TAG) -> bytearray:
        first = self.offset // self.device.interval
        return tuples(self.device, data, tag=tag, reftag=first)


@contextmanager
def sealed(client: Client, path: Path, **terms: object) -> Iterator[Sealed]:
    reply = client.grant(path=str(path), kind="exclusive", **terms)
    [fd] = reply.fds
    try:
        pi = PiFile.open(client, reply.seal.id)
    except BaseException:
        os.close(fd)
        client.call(Return, seal=reply.seal.id)
        raise
    it = Sealed(client, reply.seal.id, fd, pi, path)
    try:
        yield it
    finally:
        it.give_back()


@pytest.fixture(params=[*SCSI, *NVME])
def file(request: pytest.FixtureRequest, running: Running, base: Path) -> Iterator[Path]:
    """A file on an XFS on such a device."""
    with ExitStack() as undo:
        if request.param in SCSI:
            disk = undo.enter_context(scsi_disk(**SCSI[request.param]))
        else:
            disk = nvme_disk(NVME[request.param])
        yield make(undo.enter_context(mounted(disk, base / request.param)) / "file")


@pytest.fixture(scope="module")
def shelf(running: Running, base: Path) -> Iterator[Path]:
    """A directory on the first NVMe namespace."""
    with mounted(nvme_disk(1), base / "shelf") as point:
        yield point


# Tags, both ways


def test_tags_are_accepted_both_ways_and_wrong_ones_named(client: Client, file: Path) -> None:
    with sealed(client, file) as it:
        it.heard = client.call(PiErrors, after=2**53).result.next
        ours = it.good()
        assert it.write(ours, provided=ALL, verify=ALL, tag=TAG) == len(DATA)
        # XFS, by the kernel's own verification of each block that is read.
        assert os.pread(it.fd, len(DATA), it.offset) == DATA
        data, found = it.read(verify=ALL, tag=TAG)
        assert (data, found) == (DATA, bytes(ours))
        _wrong_fields_are_named(it)
        _the_kernels_own_are_read(it)


def _wrong_fields_are_named(it: Sealed) -> None:
    """By the device, and nothing is written."""
    checks = [name for name in ALL if name != "reftag" or it.device.ref_size]
    if "scsi" in str(it.path):
        checks.remove("tag")  # neither SCSI type checks it without a list of them (ATO, SBC-4)
    for name in checks:
        bad = it.good(bytes(len(DATA)))
        bad[place_of(it.device, name, 3)] ^= 0x40
        with pytest.raises(PiIOError) as caught:
            it.write(bad, bytes(len(DATA)), provided=ALL, verify=ALL, tag=TAG, cookie=77)
        failed = caught.value.failure
        assert (caught.value.errno, failed.checker, failed.field) == (errno.EILSEQ, "device", name)
        assert failed.offset == it.offset + 3 * it.device.interval
        assert failed.expected is not None
        assert failed.found == failed.expected ^ 0x40
        assert it.read()[0] == DATA
        told = it.client.call(PiErrors, after=it.heard, wait=SLOW / 2).result
        [error], it.heard = told.errors, told.next
        assert (error.seal, error.kind, error.field, error.cookie) == (it.id, "refused", name, 77)
        assert (error.at, error.checker, error.offset) == ("write", "device", failed.offset)
        assert int(error.found, 16) == failed.found


def _the_kernels_own_are_read(it: Sealed) -> None:
    """What the file system wrote, and the block layer made tags for."""
    other = DATA[::-1]
    os.pwrite(it.fd, other, it.offset)
    data, found = it.read()  # dirty in the page cache until now
    assert data == other
    expected = it.good(other, tag=0)
    for index in range(len(DATA) // it.device.interval):
        for name in ("checksum", "tag", "reftag") if it.device.ref_size else ("tag",):
            at = place_of(it.device, name, index)
            if it.device.pi_offset and name == "checksum":
                continue  # covers metadata that the kernel leaves as it is
            assert found[at] == expected[at], (name, index)


# Errors of the medium


def test_what_is_wrong_on_the_medium_is_named_by_a_read(client: Client, shelf: Path) -> None:
    with sealed(client, make(shelf / "medium")) as it:
        bad = it.good()
        bad[place_of(it.device, "checksum", 5)] ^= 1
        # NVMe checks only what it is told to.
        it.write(bad, provided=ALL, verify=(), checkers=())
        for checker in ("device", "service"):
            with pytest.raises(PiIOError) as caught:
                it.read(checkers=[checker])
            failed = caught.value.failure
            assert (failed.checker, failed.field, failed.located) == (checker, "checksum", True)
            assert failed.offset == it.offset + 5 * it.device.interval
        data, found = it.read(verify=())
        assert (data, found) == (DATA, bytes(bad))
        assert it.write(None) == len(DATA)
        assert it.read(checkers=("device", "service"))[0] == DATA


def test_scsi_names_the_block_when_it_keeps_the_tuple_back(
    running: Running, client: Client, base: Path
) -> None:
    with scsi_disk(1) as disk, mounted(disk, base / "stale") as point:
        file = make(point / "file")
        with sealed(client, file) as it:
            it.write(None)
            settings = Path("/sys/block", disk.name, "integrity")
            (settings / "write_generate").write_text("0")  # data without tags: they become stale
            os.pwrite(it.fd, b"\xff" * 4096, it.offset + 8192)
            os.fsync(it.fd)
            (settings / "write_generate").write_text("1")
            with pytest.raises(PiIOError) as caught:
                it.read()
            failed = caught.value.failure
            assert (failed.checker, failed.field, failed.located) == ("device", "", True)
            assert (failed.offset, failed.length) == (it.offset + 8192, 512)


# Requests


def test_the_tags_may_be_an_iovec_and_the_data_shared(client: Client, shelf: Path) -> None:
    with sealed(client, make(shelf / "iovecs")) as it:
        good, middle = it.good(), 1000  # pieces need not be whole blocks
        first = PiTerms(provided=ALL, verify=ALL, tag=TAG, place=Place.FIRST)
        last = PiTerms(provided=ALL, verify=ALL, tag=TAG, place=Place.LAST)
        it.pi.writev(it.offset, [good, DATA[:middle], DATA[middle:]], None, first)
        assert it.read()[0] == DATA
        it.pi.writev(it.offset, [DATA[:middle], DATA[middle:], good], None, last)
        back = [bytearray(middle), bytearray(len(DATA) - middle), bytearray(len(good))]
        it.pi.readv(it.offset, back, None, last)
        assert (b"".join(back[:2]), back[2]) == (DATA, good)
        shared = it.pi.memory[: len(DATA)]
        shared[:] = DATA[::-1]
        it.pi.writev(it.offset, [shared])
        assert os.pread(it.fd, len(DATA), it.offset) == DATA[::-1]
        shared.release()
        it.pi.close()
        it.pi = PiFile.open(client, it.id)
        refused = refusal(lambda: PiFile.open(client, it.id))
        assert refused.code == "limit-reached"


def test_a_request_longer_than_the_shared_memory(client: Client, shelf: Path) -> None:
    whole = os.urandom(3 * MiB)
    with sealed(client, make(shelf / "long", 3 * MiB)) as it:
        it.offset = 0
        assert it.pi.writev(0, [whole], it.good(whole), PiTerms(provided=ALL)) == len(whole)
        assert os.pread(it.fd, len(whole), 0) == whole
        bad = it.good(whole)
        bad[place_of(it.device, "checksum", 6000)] ^= 1
        with pytest.raises(PiIOError) as caught:
            it.pi.writev(0, [whole], bad, PiTerms(provided=ALL))
        assert caught.value.failure.offset == 6000 * it.device.interval


def test_what_is_not_there_to_be_written_is_refused(client: Client, shelf: Path) -> None:
    def fails(call: object) -> int:
        with pytest.raises(PiIOError) as caught:
            call()  # type: ignore[operator]
        return int(caught.value.errno or 0)

    with sealed(client, make(shelf / "bounds"), offset=8192, length=65536) as it:
        for offset, length, wanted in (
            (4096, 4096, errno.ERANGE),
            (8192 + 65536, 4096, errno.ERANGE),
            (8192, 65536 + 4096, errno.ERANGE),
            (8192 + 1, 4096, errno.EINVAL),
            (8192, 100, errno.EINVAL),
        ):
            assert fails(lambda o=offset, n=length: it.pi.writev(o, [bytes(n)])) == wanted
        assert fails(lambda: it.pi.writev(8192, [bytes(4096)], bytearray(8))) == errno.EINVAL
    with sealed(client, shelf / "bounds", iomode="read") as it:
        assert fails(lambda: it.write(None)) == errno.EBADF
        assert it.read()[0] == bytes(len(DATA))


def test_the_page_cache_is_dropped_or_the_write_refused(client: Client, shelf: Path) -> None:
    with sealed(client, make(shelf / "cached")) as it:
        assert os.pread(it.fd, len(DATA), it.offset) == bytes(len(DATA))  # cached now
        it.write(None)
        assert os.pread(it.fd, len(DATA), it.offset) == DATA
        with mmap.mmap(it.fd, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[it.offset] == DATA[0]
            with pytest.raises(PiIOError) as caught:
                it.write(None)
            assert caught.value.errno == errno.EBUSY
        it.write(None, DATA[::-1])
        assert os.pread(it.fd, len(DATA), it.offset) == DATA[::-1]


def test_a_c_client_opens_a_channel_on_its_registration(running: Running, shelf: Path) -> None:
    """seal_pi_open of libseal, on the client that Python's ring client has."""
    fd = os.open(make(shelf / "ring"), os.O_RDWR)
    ring = RingClient(str(running.socket))
    try:
        file = ring.register(fd, kind="exclusive")
        client = ffi.cast("struct seal_client *", int(native.ffi.cast("uintptr_t", ring.handle)))
        out, error = ffi.new("struct seal_pi **"), ffi.new("struct seal_channel_error *")
        assert lib.seal_pi_open(client, file, 0, b"t10-dif3-512", out) == -errno.EOPNOTSUPP
        told = native.ffi.string(native.lib.seal_failure(ring.handle))
        assert b"keeps t10-dif1-512, not t10-dif3-512" in told
        assert lib.seal_pi_open(client, file, 0, b"t10-dif1-512", out) == 0
        data = ffi.new("char[]", bytes(DATA[:8192]))
        iov = ffi.new("struct iovec *", (data, 8192))
        io = ffi.new("struct seal_pi_io *", {"size": ffi.sizeof("struct seal_pi_io")})
        io.checkers, io.verify = lib.SEAL_BY_DEVICE, lib.SEAL_FIELD_CHECKSUM
        assert lib.seal_pi_writev(out[0], iov, 1, io, error) == 8192
        io.checkers = lib.SEAL_BY_CLIENT
        assert lib.seal_pi_readv(out[0], iov, 1, io, error) == -errno.ENOTSUP
        assert os.pread(fd, 8192, 0) == DATA[:8192]
        lib.seal_pi_close(out[0])
        ring.unregister(file)
    finally:
        ring.close()
        os.close(fd)


@contextmanager
def registered(running: Running, path: Path) -> Iterator[tuple[RingClient, int, int]]:
    """A ring, the index of an exclusive registration in it, and the holder's own descriptor."""
    fd = os.open(make(path), os.O_RDWR)
    ring = RingClient(str(running.socket), timeout=SLOW)
    try:
        yield ring, ring.register(fd, kind="exclusive"), fd
    finally:
        ring.close()
        os.close(fd)


def test_requests_go_through_the_ring(running: Running, client: Client, shelf: Path) -> None:
    with registered(running, shelf / "commands") as (ring, file, fd):
        heard = client.call(PiErrors, after=2**53).result.next
        with pytest.raises(OSError, match="keeps t10-dif1-512, not t10-dif3-512"):
            PiRing(ring, file, profile="t10-dif3-512")
        with PiRing(ring, file, profile="t10-dif1-512") as pi:
            tags = bytearray(pi.tuples(len(DATA)))
            terms = PiTerms(verify=ALL, checkers=("service", "device"), tag=TAG, cookie=5)
            assert pi.writev(0, [DATA], tags, terms) == len(DATA)
            assert os.pread(fd, len(DATA), 0) == DATA
            read, found = bytearray(len(DATA)), bytearray(len(tags))
            assert pi.readv(0, [read], found, terms) == len(DATA)
            assert (bytes(read), found) == (DATA, tags)
            tags[3 * 8] ^= 0x40  # the guard of the fourth interval
            provided = PiTerms(provided=ALL, verify=ALL, tag=TAG, cookie=6)
            with pytest.raises(PiIOError) as caught:
                pi.writev(0, [bytes(DATA)], tags, provided)
            failed = caught.value.failure
            assert caught.value.errno == errno.EILSEQ
            assert (failed.field, failed.offset) == ("checksum", 3 * pi.interval)
            [error] = client.call(PiErrors, after=heard, wait=SLOW / 2).result.errors
            assert (error.kind, error.field, error.cookie) == ("refused", "checksum", 6)
            _several_at_a_time(ring, file, pi, fd)
        with PiRing(ring, file) as pi:  # the one before is closed
            assert pi.writev(0, [DATA[:512]]) == 512
            running.kill()
            with pytest.raises(PiIOError) as caught:
                pi.writev(0, [DATA[:512]])
            assert caught.value.errno == errno.ESTALE
        running.start()
        running.ready()
        ring.reconnect()
        with PiRing(ring, file) as pi:
            client = Client(str(running.socket), timeout=SLOW)
            client.call(RecallSeals, path=str(shelf / "commands"))
            until(lambda: any(news.kind == "file" for news in ring.dispatch()), SLOW, "the recall")
            with pytest.raises(PiIOError) as caught:
                pi.writev(0, [DATA[:512]])
            assert caught.value.errno == errno.ESTALE
            client.close()
        ring.unregister(file)


def _several_at_a_time(ring: RingClient, file: int, pi: PiRing, fd: int) -> None:
    """Sixteen commands in flight, and one more that is waited for: a channel keeps their order."""
    lib_, ffi_ = native.lib, native.ffi
    size, blocks = 4096, [bytes([number]) * 4096 for number in range(1, 17)]
    at = 0x80000  # of the PI in the shared memory
    for number, data in enumerate(blocks):
        pi.memory[number * size : (number + 1) * size] = data
        entry = ffi_.new("struct seal_pi_command *")
        entry.command.op, entry.command.file = lib_.SEAL_CMD_PI_WRITE, file
        request = entry.request
        request.offset, request.length = number * size, size
        request.data, request.pi = number * size, at + number * size
        request.reftag = number * size // 512
        assert ring.alone(lib_.seal_submit, ffi_.addressof(entry, "command")) > 0
    assert ring.alone(lib_.seal_flush) == 0
    read = bytearray(512)
    assert pi.readv(16 * size, [read]) == 512
    assert os.pread(fd, 16 * size, 0) == b"".join(blocks)
    ring.dispatch()


# The seal


def test_an_intruder_waits_until_the_io_has_ended(client: Client, shelf: Path) -> None:
    file, ended = make(shelf / "recalled"), list[int]()

    def write_until_refused(it: Sealed) -> None:
        try:
            while True:
                ended.append(it.write(None))
        except PiIOError as error:
            ended.append(-(error.errno or 0))

    with sealed(client, file) as it:
        writer = threading.Thread(target=write_until_refused, args=(it,))
        writer.start()
        until(lambda: len(ended) > 3, what="writing")
        code = "import os, sys; os.truncate(sys.argv[1], 0)"
        with subprocess.Popen([sys.executable, "-c", code, file]) as intruder:
            writer.join(SLOW)
            assert ended[-1] == -errno.ESTALE
            assert set(ended[:-1]) == {len(DATA)}
            assert intruder.poll() is None
            assert os.fstat(it.fd).st_size == MiB
            with pytest.raises(PiIOError) as caught:
                it.read()
            assert caught.value.errno == errno.ESTALE
            refused = refusal(lambda: PiFile.open(client, it.id))
            assert refused.code == "try-later"
            it.give_back()
            assert intruder.wait(SLOW) == 0
        assert file.stat().st_size == 0


def test_a_recall_stops_the_channel_and_a_new_one_is_opened_after_it(
    client: Client, shelf: Path
) -> None:
    with sealed(client, make(shelf / "wanted")) as it:
        half = ByteRange(MiB // 2, MiB // 2)
        client.call(RecallSeals, seal=it.id, range=half)
        with pytest.raises(PiIOError) as caught:
            it.write(None)
        assert caught.value.errno == errno.ESTALE
        client.call(Return, seal=it.id, range=half)  # all that was wanted
        it.pi.close()
        it.pi = PiFile.open(client, it.id)
        assert it.pi.info.length == MiB // 2
        it.write(None)
        with pytest.raises(PiIOError) as caught:
            it.pi.writev(half.offset, [DATA])
        assert caught.value.errno == errno.ERANGE


def test_a_service_that_was_killed_is_asked_again(
    running: Running, client: Client, shelf: Path
) -> None:
    with sealed(client, make(shelf / "killed")) as it:
        it.write(None)
        running.kill()
        with pytest.raises(PiIOError) as caught:
            it.write(None)
        assert caught.value.errno == errno.ESTALE
        running.start()
        until(running.socket.exists, SLOW, "the service's socket")
        running.ready()
        client.reconnect(SLOW)
        it.pi.close()
        it.pi = PiFile.open(client, it.id)
        it.write(None, DATA[::-1])
        assert os.pread(it.fd, len(DATA), it.offset) == DATA[::-1]


# Which devices


def described(client: Client, path: Path) -> PiPathInfo:
    with path.open("rb") as file:
        result = client.call(PiPath, [file.fileno()]).result
    assert isinstance(result, PiPathInfo)
    return result


def works(client: Client, file: Path) -> None:
    with sealed(client, file) as it:
        assert it.write(it.good(), provided=ALL, verify=ALL, tag=TAG) == len(DATA)
        assert os.pread(it.fd, len(DATA), it.offset) == DATA
        assert it.read(verify=ALL, tag=TAG) == (DATA, bytes(it.good()))


def partition(disk: Path, start: int, count: int) -> Path:
    """One partition, in sectors. The kernel looks for other tables, too: at sectors whose tags were
    never written, a read would fail."""
    size = int(Path("/sys/class/block", disk.name, "size").read_text()) * 512
    disk.write_bytes(bytes(size))
    entry = struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, count)
    with disk.open("r+b") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.flush()
        os.fsync(file.fileno())
        fcntl.ioctl(file, BLKRRPART)
    made = disk.with_name(f"{disk.name}p1")
    until(made.exists)
    return made


def test_on_a_partition_and_device_mapper(client: Client, base: Path) -> None:
    """Reference tags follow the sectors of the disk, whatever stands in between."""
    disk = partition(nvme_disk(4), 2048, 122880)
    with mounted(disk, base / "partition") as point:
        works(client, make(point / "file"))
    sh("modprobe", "-a", "dm_mod")
    table = f"0 40000 linear {disk} 50000\n40000 40000 linear {disk} 4096\n"
    with linear(table) as mapped, mounted(mapped, base / "linear") as point:
        file = make(point / "file")
        works(client, file)
        found = described(client, file)
        assert (found.available, found.profile) == (True, "t10-dif1-512")
    table = f"0 76800 striped 1 256 {disk} 4096\n"
    with linear(table) as mapped, mounted(mapped, base / "striped") as point:
        found = described(client, make(point / "file"))
        assert (found.available, "striped, not linear" in found.reason) == (False, True)


@contextmanager
def linear(table: str) -> Iterator[Path]:
    subprocess.run(["dmsetup", "create", "--noudevsync", "pi"], input=table, text=True, check=True)
    sh("dmsetup", "mknodes")
    try:
        yield Path("/dev/mapper/pi").resolve()
    finally:
        sh("dmsetup", "remove", "--noudevsync", "--retry", "pi")
