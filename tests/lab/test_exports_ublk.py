"""ublk: the library's examples, hundreds of devices in one process, and sealed files as devices."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.exports.exporting import Exports, relocating
from tests.exports.loading import loaded
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, ROOT, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.lab(cpus=2), pytest.mark.timeout(400)]
MiB = 1 << 20
PAGE = 4096


def sh(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session", autouse=True)
def module() -> None:
    sh("modprobe", "ublk_drv")


def example(name: str) -> Path:
    return next((ROOT / "build" / "native").rglob(f"ublk-{name}"))


def started(command: list[object], devices: int = 1) -> tuple[subprocess.Popen[str], list[str]]:
    """A program, and the devices that it names."""
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        return process, [said.readline().strip() for _ in range(devices)]


@contextmanager
def running_example(
    name: str, *arguments: object, devices: int = 1
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """An example program and its devices, which go when it is told to end."""
    process, nodes = started([example(name), *arguments], devices)
    try:
        yield process, nodes
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert [node for node in nodes if Path(node).exists()] == []
    finally:
        process.kill()
        process.wait()


class Direct:
    """Pages of a device, past the page cache."""

    def __init__(self, node: str) -> None:
        self._fd = os.open(node, os.O_RDWR | os.O_DIRECT)
        self._page = mmap.mmap(-1, PAGE)

    def __enter__(self) -> Direct:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def write(self, offset: int, data: bytes) -> None:
        self._page[:] = data.ljust(PAGE, b".")
        assert os.pwritev(self._fd, [self._page], offset) == PAGE

    def read(self, offset: int) -> bytes:
        assert os.preadv(self._fd, [self._page], offset) == PAGE
        return self._page[:]


def test_null_forgets() -> None:
    with running_example("null", 64 * MiB) as (_, [node]), Direct(node) as device:
        device.write(8192, b"what is written")
        assert device.read(8192) == bytes(PAGE)


@pytest.mark.parametrize(("name", "more"), [("memory", []), ("rpc", [2])])
def test_what_is_written_is_read(name: str, more: list[int]) -> None:
    """Late buffers given by address; and by threads that copy for themselves, with two queues."""
    with running_example(name, 32 * MiB, *more) as (_, [node]), loaded(node, 2):
        pass


def test_two_hundred_devices_in_one_process() -> None:
    with running_example("memory", MiB, 200, devices=200) as (process, nodes):
        assert len(set(nodes)) == 200
        for n, node in enumerate(nodes):
            with Direct(node) as device:
                device.write(PAGE, b"device %d" % n)
        for n, node in enumerate(nodes):
            with Direct(node) as device:
                assert device.read(PAGE).startswith(b"device %d." % n)
        # The main thread, and one for the one queue of all of them; io_uring's are the kernel's.
        tasks = Path(f"/proc/{process.pid}/task").glob("*/comm")
        assert len([task for task in tasks if not task.read_text().startswith("iou-")]) == 2


def test_a_killed_server_loses_no_write(tmp_path: Path) -> None:
    """The file example, killed under load and started again for the same device."""
    file = tmp_path / "file"
    file.write_bytes(bytes(8 * MiB))
    process, [node] = started([example("file"), file])
    with loaded(node, 5):
        for _ in range(3):
            time.sleep(1)
            process.kill()
            process.wait()
            number = node.removeprefix("/dev/ublkb")
            process, [again] = started([example("file"), file, number])
            assert again == node
    process.terminate()
    assert process.wait(PATIENCE) == 0


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with mounted_dax("xfs") as point:
        yield point


@pytest.fixture(scope="module")
def running(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(
        Running(tmp_path_factory.mktemp("daemon"), [root], RISKS + "[fence]\nsignal_grace = 1.0\n")
    ) as made:
        yield made


@pytest.fixture
def exports(running: Running, tmp_path: Path) -> Exports:
    (tmp_path / "exports").mkdir()
    return Exports(tmp_path / "exports", running.socket)


@pytest.fixture
def image(root: Path) -> Iterator[Path]:
    made = root / "image"
    made.write_bytes(os.urandom(16 * MiB))
    yield made
    made.unlink()


def test_no_request_fails_while_the_file_is_moved_about(exports: Exports, image: Path) -> None:
    before = image.read_bytes()
    with exports.serving("ublk", "disk", image) as info:
        assert Path(info["device"]).read_bytes() == before
        with loaded(info["device"], 8), relocating(image, 12, MiB, exports):
            pass
        shown = exports.show("disk")
        assert shown["pauses"]["count"] >= 12
        print(f"pauses: {shown['pauses']}")
        after = Path(info["device"]).read_bytes()
    assert image.read_bytes() == after != before


def test_a_killed_exporter_is_taken_up_again_without_a_failed_request(
    exports: Exports, image: Path
) -> None:
    with exports.serving("ublk", "disk", image) as info:
        with loaded(info["device"], 8):
            for _ in range(3):
                time.sleep(1)
                os.kill(exports.show("disk")["pid"], signal.SIGKILL)
                until(lambda: exports.show("disk")["state"] == "dead")
                exports.call("recover", "disk")
        assert exports.show("disk")["device"] == info["device"]


def test_a_device_whose_process_was_killed_can_be_removed(exports: Exports, image: Path) -> None:
    with exports.serving("ublk", "disk", image) as info:
        os.kill(info["pid"], signal.SIGKILL)
        until(lambda: exports.show("disk")["state"] == "dead")
    assert not Path(info["device"]).exists()


def test_a_mounted_device_is_not_stopped(exports: Exports, image: Path, tmp_path: Path) -> None:
    with exports.serving("ublk", "disk", image) as info:
        sh("mkfs.ext4", "-q", "-F", info["device"])
        above = tmp_path / "above"
        above.mkdir()
        sh("mount", info["device"], above)
        try:
            wrote = os.urandom(2 * MiB)
            with relocating(image, 3, MiB):
                (above / "file").write_bytes(wrote)
                os.sync()
            refused = exports.ask("stop", "disk")
            assert refused.returncode == 1
            assert "mounted" in refused.stderr
        finally:
            sh("umount", above)
        sh("mount", info["device"], above)
        assert (above / "file").read_bytes() == wrote
        sh("umount", above)
        sh("e2fsck", "-f", "-n", info["device"])
