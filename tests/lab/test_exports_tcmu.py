"""TCMU: the runner and its plugins as LIO's backstore, by tcm_loop, looked at with sg3-utils."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.exports.programs import program
from tests.exports.exporting import Exports, relocating
from tests.exports.loading import loaded
from tests.lab.pmem import mounted_dax
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.lab(cpus=2), pytest.mark.timeout(400)]
MiB = 1 << 20
TARGET = Path("/sys/kernel/config/target")
BLOCK = 512


def sh(*command: object, status: int = 0) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == status, f"{command}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session", autouse=True)
def modules() -> None:
    sh("modprobe", "-a", "target_core_user", "tcm_loop", "sd_mod", "sg")
    if not TARGET.exists():
        sh("mount", "-t", "configfs", "none", "/sys/kernel/config")


@contextmanager
def runner(subtype: str, notes: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [program("sealsvc-tcmu"), "--subtype", subtype, "--notes", notes],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


@contextmanager
def backstore(name: str, config: str, size: int) -> Iterator[Path]:
    """A TCMU device of LIO, linked to nothing."""
    core = TARGET / "core" / "user_3" / name
    core.mkdir(parents=True)
    try:
        (core / "control").write_text(f"dev_config={config},dev_size={size},hw_block_size={BLOCK}")
        (core / "enable").write_text("1")
        yield core
    finally:
        core.rmdir()


@contextmanager
def lun(core: Path, seconds: float = 60, number: int = 0) -> Iterator[str]:
    """The disk that tcm_loop makes of it, once it is there; `number` tells targets apart."""
    portal = TARGET / "loopback" / f"naa.50014050000000{number}1" / "tpgt_1"
    link = portal / "lun" / "lun_0" / core.name
    link.parent.mkdir(parents=True)
    try:
        (portal / "nexus").write_text(f"naa.50014050000000{number}2")
        link.symlink_to(core)
        host = (portal / "address").read_text().strip()
        disks = Path(f"/sys/bus/scsi/devices/{host}:0/block")
        until(lambda: any(disks.glob("*")), seconds, "the disk")
        node = f"/dev/{next(disks.iterdir()).name}"
        until(lambda: opens(node), seconds, "the disk's probe")
        yield node
    finally:
        link.unlink(missing_ok=True)
        for directory in (link.parent, portal, portal.parent):
            directory.rmdir()


def opens(node: str) -> bool:
    """sd probes a disk after its directory is there (drivers/scsi/sd.c sd_probe)."""
    try:
        os.close(os.open(node, os.O_RDONLY))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise
        return False
    return True


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_what_the_disk_says_of_itself(tmp_path: Path) -> None:
    """By others' tools; and the runner hears of devices that come and go."""
    if not shutil.which("sg_inq"):
        pytest.skip("sg3-utils is not installed")
    file = tmp_path / "file"
    file.write_bytes(bytes(8 * MiB))
    data = {name: os.urandom(BLOCK) for name in "ab"}
    for name in ("aa", "ab", "ba"):
        (tmp_path / name).write_bytes(data[name[0]] + data[name[1]])
    with runner("file", tmp_path / "notes") as process:
        with backstore("disk", f"file/{file}", 8 * MiB) as core, lun(core) as node:
            assert line(process).endswith("3/disk (file)")
            assert "SEALSVC" in sh("sg_inq", node)
            assert f"Number of logical blocks={8 * MiB // BLOCK}" in sh("sg_readcap", "--16", node)
            for page, text in {
                "0x80": "disk", "0x83": "NAA", "0xb0": "Maximum compare and write length: 32",
                "0xb1": "Non-rotating", "0xb2": "Unmap command supported (LBPU): 1",
            }.items():  # fmt: skip
                assert text in sh("sg_vpd", "--page", page, node), page
            assert "Caching" in sh("sg_modes", "--page=8", node)
            assert "Compare and write" in sh("sg_opcodes", node)
            with file.open("r+b") as out:
                out.write(data["a"])
            compare = ["sg_compare_and_write", "--lba=0", "--num=1", f"--xferlen={2 * BLOCK}"]
            sh(*compare, f"--in={tmp_path / 'ab'}", node)
            assert file.read_bytes()[:BLOCK] == data["b"]
            sh(*compare, f"--in={tmp_path / 'ab'}", node, status=14)  # MISCOMPARE
            assert file.read_bytes()[:BLOCK] == data["b"]
            same = ["sg_write_same", "--lba=8", "--num=8", f"--xferlen={BLOCK}"]
            sh(*same, f"--in={tmp_path / 'aa'}", node)
            assert file.read_bytes()[8 * BLOCK : 16 * BLOCK] == 8 * data["a"]
            sh("sg_unmap", "--lba=8", "--num=8", node)
            assert file.read_bytes()[8 * BLOCK : 16 * BLOCK] == bytes(8 * BLOCK)
            sh("sg_verify", "--lba=0", "--count=16", node)
            sh("sg_sync", node)
            # Not in the table: illegal request, of which sg3-utils tell the operation code apart.
            sh("sg_raw", node, "02", *["0"] * 5, status=9)
        assert line(process) == "removed 3/disk"


@contextmanager
def known_by_number(*nodes: str) -> Iterator[None]:
    """As udev does, which the guest has none of: sg_xcopy opens /dev/block/MAJOR:MINOR."""
    made = []
    for node in nodes:
        number = os.stat(node).st_rdev
        link = Path(f"/dev/block/{os.major(number)}:{os.minor(number)}")
        if not link.exists():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(node)
            made.append(link)
    try:
        yield
    finally:
        for link in made:
            link.unlink()


def test_third_party_copies_by_others_tools(tmp_path: Path) -> None:
    """Within one disk, and between two of one runner; what is told before and after."""
    if not shutil.which("sg_xcopy"):
        pytest.skip("sg3-utils is not installed")
    files = [tmp_path / "one", tmp_path / "two"]
    data = [os.urandom(8 * MiB) for _ in files]
    for file, content in zip(files, data, strict=True):
        file.write_bytes(content)
    with (
        runner("file", tmp_path / "notes") as process,
        backstore("one", f"file/{files[0]}", 8 * MiB) as one,
        backstore("two", f"file/{files[1]}", 8 * MiB) as two,
        lun(one) as a,
        lun(two, number=1) as b,
        known_by_number(a, b),
    ):
        assert {line(process)[-12:] for _ in files} == {"3/one (file)", "3/two (file)"}
        assert "3PC=1" in sh("sg_inq", a)
        page = sh("sg_vpd", "--page=0x8f", a)
        assert "Third party copy" in page or "Third-party" in page, page
        told = sh("sg_copy_results", "--params", a)
        assert re.search(r"[Mm]aximum segment descriptor count: 16", told), told
        copy = ["sg_xcopy", f"bs={BLOCK}", "count=2048"]
        sh(*copy, "skip=0", "seek=8192", f"if={a}", f"of={a}")
        sh(*copy, "skip=100", "seek=301", f"if={a}", f"of={b}")
        found = [Path(node).read_bytes() for node in (a, b)]
    want = data[0][: 4 * MiB] + data[0][:MiB] + data[0][5 * MiB :]
    assert found[0] == files[0].read_bytes() == want
    at, start = 301 * BLOCK, 100 * BLOCK
    want = data[1][:at] + found[0][start : start + MiB] + data[1][at + MiB :]
    assert found[1] == files[1].read_bytes() == want


def test_two_handlers_side_by_side(tmp_path: Path) -> None:
    """Each takes the devices of its own subtype, and the death of one is nothing to the other."""
    file = tmp_path / "file"
    file.write_bytes(bytes(4 * MiB))
    with (
        runner("null", tmp_path / "n") as null,
        backstore("one", f"null/{MiB}", MiB) as one,
        backstore("two", f"file/{file}", 4 * MiB),
    ):
        other = subprocess.Popen(
            [program("sealsvc-tcmu"), "--subtype", "file"], stdout=subprocess.PIPE, text=True
        )
        with other:
            assert line(null).endswith("3/one (null)")
            assert line(other).endswith("3/two (file)")
            other.kill()
            assert other.wait() == -signal.SIGKILL
        with lun(one) as node:
            assert Path(node).read_bytes() == bytes(MiB)


def test_a_device_that_nobody_attaches_to(tmp_path: Path) -> None:
    """Its commands end by the kernel's time-out, nobody hangs, and it can be served afterwards."""
    with backstore("late", f"null/{MiB}", MiB) as core:
        (core / "attrib" / "cmd_time_out").write_text("1")
        with pytest.raises(AssertionError, match="the disk never"), lun(core, 3):
            pass  # there is no disk: its INQUIRY was aborted
        with runner("null", tmp_path / "notes") as process:
            assert line(process).endswith("3/late (null)")
            with lun(core) as node:
                assert Path(node).read_bytes() == bytes(MiB)


def test_a_killed_handler_loses_no_command(tmp_path: Path) -> None:
    """The ring is kept, and what waits in it is served by the next; three times, under load."""
    file = tmp_path / "file"
    file.write_bytes(bytes(16 * MiB))
    notes = tmp_path / "notes"
    command = [program("sealsvc-tcmu"), "--subtype", "file", "--notes", notes]
    process = subprocess.Popen(command)
    try:
        with (
            backstore("disk", f"file/{file}", 16 * MiB) as core,
            lun(core) as node,
            loaded(node, 6),
        ):
            for _ in range(3):
                time.sleep(1)
                process.kill()
                process.wait()
                time.sleep(0.2)
                process = subprocess.Popen(command)
    finally:
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


def test_no_command_fails_while_the_file_is_moved_about(
    exports: Exports, image: Path, tmp_path: Path
) -> None:
    with exports.serving("tcmu", "disk", image) as info:
        assert re.fullmatch("/dev/sd[a-z]+", info["device"])
        assert Path(info["device"]).read_bytes() == image.read_bytes()
        with loaded(info["device"], 8), relocating(image, 12, MiB, exports):
            pass
        shown = exports.show("disk")
        assert shown["pauses"]["count"] >= 12
        print(f"pauses: {shown['pauses']}")
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
        sh("e2fsck", "-f", "-n", info["device"])
    assert not (TARGET / "core" / "user_7" / "disk").exists()


def test_a_killed_exporter_is_taken_up_again_without_a_failed_command(
    exports: Exports, image: Path
) -> None:
    with exports.serving("tcmu", "disk", image) as info:
        with loaded(info["device"], 8):
            for _ in range(2):
                time.sleep(1)
                os.kill(exports.show("disk")["pid"], signal.SIGKILL)
                until(lambda: exports.show("disk")["state"] == "dead")
                exports.call("recover", "disk")
        assert exports.show("disk")["device"] == info["device"]
