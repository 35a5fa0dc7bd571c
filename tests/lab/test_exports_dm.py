"""dm exports: device-mapper on the blocks of a sealed file."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.protocol.seals import List
from tests.exports.exporting import Exports, relocating
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
MiB = 1 << 20
SIZE = 48 * MiB


def sh(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session", autouse=True)
def modules() -> None:
    sh("modprobe", "-a", "dm-mod", "loop")


@pytest.fixture(scope="module", params=["linear", "bare"])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A DAX file system on device-mapper, as LVM makes it, and a file system on the bare device."""
    if request.param == "bare":
        with mounted_dax("xfs", options="dax=never") as point:
            yield point
        return
    sectors = int(Path("/sys/block/pmem0/size").read_text()) - 2048
    sh("dmsetup", "create", "--noudevsync", "lab", "--table", f"0 {sectors} linear /dev/pmem0 2048")
    try:
        with mounted_dax("xfs", device="/dev/mapper/lab") as point:
            yield point
    finally:
        sh("dmsetup", "remove", "--noudevsync", "--retry", "lab")


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
    made.write_bytes(os.urandom(SIZE))
    yield made
    made.unlink()


@pytest.fixture
def linear(root: Path) -> None:
    """For what does not depend on the device beneath."""
    if "/dev/mapper/lab" not in Path("/proc/mounts").read_text():
        pytest.skip("once is enough")


def table(name: str) -> str:
    return sh("dmsetup", "table", f"sealsvc-{name}")


def is_suspended(name: str) -> bool:
    asked = ("dmsetup", "info", "-c", "--noheadings", "-o", "suspended", f"sealsvc-{name}")
    return sh(*asked).strip() == "Suspended"


def read_whole(node: str) -> bytes:
    with open(node, "rb") as device:
        return device.read()


def verified(node: str, seconds: int, *more: str) -> subprocess.Popen[str]:
    """fio, which writes and verifies what it wrote: it ends with an error at the first request that
    fails, and at the first block that is not what it wrote."""
    return subprocess.Popen(
        [
            "fio", "--name=verify", f"--filename={node}", "--ioengine=psync", "--direct=1",
            "--rw=randrw", "--bs=4k", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64",
            "--verify_state_save=0",
            "--numjobs=1", "--time_based", f"--runtime={seconds}", "--allow_file_create=0", *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def test_the_device_has_the_files_bytes_and_the_file_the_devices(
    exports: Exports, image: Path
) -> None:
    before = image.read_bytes()
    with exports.serving("dm", "disk", image) as info:
        node = info["device"]
        assert read_whole(node) == before
        written = os.urandom(MiB)
        fd = os.open(node, os.O_RDWR | os.O_SYNC)
        os.pwrite(fd, written, 5 * MiB)
        os.close(fd)
        assert info["timeouts"]["recall"] < info["timeouts"]["initiator"]
    assert image.read_bytes() == before[: 5 * MiB] + written + before[6 * MiB :]


def test_no_request_fails_while_the_file_is_moved_about(exports: Exports, image: Path) -> None:
    with exports.serving("dm", "disk", image) as info:
        first = table("disk")
        load = verified(info["device"], 12)
        with relocating(image, 8, 2 * MiB, exports):
            pass
        said, _ = load.communicate(timeout=2 * PATIENCE)
        assert load.returncode == 0, said
        shown = exports.show("disk")
        assert shown["pauses"]["count"] >= 8
        assert shown["state"] == "serving"
        assert table("disk") != first, "nothing was moved: the test shows nothing"
        print(f"pauses: {shown['pauses']}")


@pytest.mark.usefixtures("linear")
def test_a_killed_exporter_is_taken_up_again_without_a_failed_request(
    exports: Exports, image: Path, running: Running
) -> None:
    with (
        exports.serving("dm", "disk", image, "--initiator-timeout", "300s") as info,
        Client(str(running.socket)) as client,
    ):
        load = verified(info["device"], 10)
        for _ in range(3):
            time.sleep(1)
            os.kill(exports.show("disk")["pid"], signal.SIGKILL)
            until(lambda: client.call(List).result.seals == [], what="the seal's end")
            assert is_suspended("disk"), "the seal ended before the device was suspended"
            exports.call("recover", "disk")
        said, _ = load.communicate(timeout=2 * PATIENCE)
        assert load.returncode == 0, said


@pytest.mark.usefixtures("linear")
def test_the_service_may_be_killed_meanwhile(
    exports: Exports, image: Path, running: Running
) -> None:
    with exports.serving("dm", "disk", image) as info:
        load = verified(info["device"], 8)
        time.sleep(1)
        running.kill()
        time.sleep(2)
        running.start()
        running.ready()
        with relocating(image, 2, MiB, exports):
            pass
        said, _ = load.communicate(timeout=2 * PATIENCE)
        assert load.returncode == 0, said
        assert exports.show("disk")["pauses"]["count"] >= 2


@pytest.mark.usefixtures("linear")
def test_a_holder_that_misses_its_deadline_is_fenced_before_the_file_changes(
    exports: Exports, image: Path
) -> None:
    with exports.serving("dm", "disk", image, "--grace", "1s") as info:
        os.kill(info["pid"], signal.SIGSTOP)
        with relocating(image, 1, MiB):
            pass
        # SIGTERM does not reach it, SIGKILL does: the device holds its requests, then fails them.
        until(lambda: exports.show("disk")["state"] == "dead")
        assert exports.show("disk")["details"]["suspended"]
        exports.call("recover", "disk")
        assert read_whole(info["device"]) == image.read_bytes()


@contextmanager
def file_system_on(node: str, point: Path, options: str) -> Iterator[Path]:
    point.mkdir()
    sh("mkfs.ext4", "-q", "-F", "-b", "4096", node)
    sh("mount", "-t", "ext4", "-o", options, node, point)
    try:
        yield point
    finally:
        sh("umount", point)


@pytest.mark.usefixtures("linear")
def test_a_file_system_lives_on_it_through_recalls(
    exports: Exports, image: Path, tmp_path: Path
) -> None:
    with exports.serving("dm", "disk", image) as info:
        with file_system_on(info["device"], tmp_path / "above", "dax=always") as above:
            assert "dax=always" in Path("/proc/mounts").read_text().splitlines()[-1]
            wrote = os.urandom(8 * MiB)
            with relocating(image, 4, 2 * MiB, exports):
                for n in range(8):
                    (above / str(n)).write_bytes(wrote[n * MiB : (n + 1) * MiB])
                    os.sync()
            refused = exports.ask("stop", "disk")
            assert refused.returncode == 1
            assert "in use" in refused.stderr
            sh("umount", above)
            sh("mount", "-t", "ext4", info["device"], above)
            assert b"".join((above / str(n)).read_bytes() for n in range(8)) == wrote
            assert exports.show("disk")["pauses"]["count"] >= 4
        sh("e2fsck", "-f", "-n", info["device"])
