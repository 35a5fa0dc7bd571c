"""NBD exports, by clients that nobody here wrote: libnbd's, QEMU's, fio's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.exports.nbd import Nbd
from sealsvc.protocol.seals import List, RecallSeals
from sealsvc.runtime.config import ServiceSection
from sealsvc.service.release import release
from tests.exports.conftest import MiB
from tests.exports.exporting import Exports, relocating
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(Nbd.missing()), reason=f"no NBD exports: {Nbd.missing()}"),
]
# Not what stands before them in the PATH of a virtual environment: they are Debian's Python's.
SYSTEM = os.environ | {"PATH": "/usr/bin:/bin"}


def sh(*command: object, status: int = 0) -> str:
    program = str(command[0])
    if shutil.which(program, path=SYSTEM["PATH"]) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, env=SYSTEM, timeout=60
    )
    assert done.returncode == status, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def nbdsh(uri: str, script: str) -> str:
    """Strict mode off: requests that a client would not send are sent."""
    return sh("nbdsh", "-c", "h.set_strict_mode(0)", "-u", uri, "-c", script)


def test_nbdinfo_reads_what_is_offered(exports: Exports, image: Path) -> None:
    with exports.serving("nbd", "disk", image) as info:
        found = json.loads(sh("nbdinfo", "--json", info["device"]))["exports"][0]
        assert found["export-size"] == 16 * MiB
        for can in (
            "can_flush",
            "can_fua",
            "can_multi_conn",
            "can_zero",
            "can_fast_zero",
            "can_df",
        ):
            assert found[can] is True, can
        assert found["can_trim"] is False
        assert found["is_read_only"] is False
        assert found["block_size_preferred"] == 4096
        extents = json.loads(sh("nbdinfo", "--json", "--map", info["device"]))
        assert extents == [{"offset": 0, "length": 16 * MiB, "type": 0, "description": "data"}]


def test_a_read_only_export_is_offered_as_one(exports: Exports, image: Path) -> None:
    with exports.serving("nbd", "disk", image, "--read-only") as info:
        found = json.loads(sh("nbdinfo", "--json", info["device"]))["exports"][0]
        assert found["is_read_only"] is True
        failed = nbdsh(info["device"], TRIED.format("h.pwrite(b'x' * 512, 0)"))
        assert failed.strip() in ("EPERM", "EROFS")


TRIED = """
try:
    {}
    print('done')
except nbd.Error as error:
    print(error.errno)
"""


@pytest.mark.parametrize("io", ["direct", "mapped"])
def test_copies_arrive(exports: Exports, image: Path, tmp_path: Path, io: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(16 * MiB))
    with exports.serving("nbd", "disk", image, "--io", io) as info:
        sh("nbdcopy", "--flush", source, info["device"])
        sh("nbdcopy", info["device"], target)
        assert target.read_bytes() == source.read_bytes()
        options = "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="
        where = exports.directory / "disk.sock"
        sh("qemu-img", "compare", "--image-opts", f"driver=raw,file.filename={source}",
           f"{options}{where},file.export=disk")  # fmt: skip
    assert image.read_bytes() == source.read_bytes()


def test_what_is_copied_is_checked_by_nbdkit(exports: Exports, image: Path, tmp_path: Path) -> None:
    """Its filter checkwrite fails every write that is not what its own file has there."""
    source = tmp_path / "source"
    source.write_bytes(os.urandom(16 * MiB))
    check = ["[", "nbdkit", "--exit-with-parent", "--filter=checkwrite", "file", source, "]"]
    with exports.serving("nbd", "disk", image) as info:
        sh("nbdcopy", source, info["device"])
        sh("nbdcopy", "--requests=16", "--connections=4", "--", info["device"], *check)
        sh("qemu-io", "-f", "raw", info["device"].replace("///?", "///disk?"), "-c", "write 8M 512")
        sh("nbdcopy", "--", info["device"], *check, status=1)


@pytest.mark.parametrize("io", ["direct", "mapped"])
def test_qemu_io_writes_patterns_of_any_alignment(exports: Exports, image: Path, io: str) -> None:
    before = image.read_bytes()
    with exports.serving("nbd", "disk", image, "--io", io) as info:
        sh("qemu-io", "-f", "raw", info["device"].replace("///?", "///disk?"),
           "-c", "write -P 0x5a 512 512", "-c", "write -f -P 0xa5 1M 3M", "-c", "write -z 4M 64k",
           "-c", "flush", "-c", "read -P 0x5a 512 512", "-c", "read -P 0 4M 64k")  # fmt: skip
        nbdsh(info["device"], "h.pwrite(b'unaligned', 4093, nbd.CMD_FLAG_FUA)")
    wanted = bytearray(before)
    wanted[512:1024] = b"\x5a" * 512
    wanted[MiB : 4 * MiB] = b"\xa5" * (3 * MiB)
    wanted[4 * MiB : 4 * MiB + 65536] = bytes(65536)
    wanted[4093 : 4093 + 9] = b"unaligned"
    assert image.read_bytes() == wanted


def test_requests_that_must_not_be_are_refused_and_the_next_is_served(
    exports: Exports, image: Path
) -> None:
    with exports.serving("nbd", "disk", image) as info:
        script = "\n".join(
            TRIED.format(call)
            for call in (
                f"h.pread(512, {16 * MiB})",
                f"h.pwrite(b'x' * 1024, {16 * MiB - 512})",
                f"h.zero(2**31, {8 * MiB})",
                "h.trim(4096, 0)",
                "h.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)",  # direct I/O: it would not be fast
                "h.pread(4096, 0)",
            )
        )
        said = nbdsh(info["device"], script).split()
        assert said[-1] == "done"
        assert "done" not in said[:-1]
        assert said[4] in ("EOPNOTSUPP", "ENOTSUP")


def verified(uri: str, seconds: int) -> subprocess.Popen[str]:
    """fio ends with an error at the first request that fails or block that is not what it wrote."""
    if "nbd" not in sh("fio", "--enghelp"):
        pytest.skip("fio has no NBD engine")
    return subprocess.Popen(
        [
            "fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randrw", "--bs=4k",
            "--iodepth=8", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64",
            "--verify_state_save=0",
            "--time_based", f"--runtime={seconds}", "--size=16m",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def ended_well(load: subprocess.Popen[str]) -> None:
    said, _ = load.communicate(timeout=PATIENCE)
    assert load.returncode == 0, said


@pytest.mark.parametrize("io", ["direct", "mapped"])
def test_no_request_fails_while_the_file_is_moved_about(
    exports: Exports, image: Path, io: str
) -> None:
    with exports.serving("nbd", "disk", image, "--io", io) as info:
        load = verified(info["device"], 6)
        with relocating(image, 20, MiB, exports):
            pass
        ended_well(load)
        shown = exports.show("disk")
        assert shown["pauses"]["count"] >= 20
        assert shown["counters"]["errors"] == 0
        assert shown["counters"]["seals"] >= 21
        print(f"pauses in ms: {shown['pauses']}")


def test_the_service_may_be_killed_meanwhile(
    exports: Exports, image: Path, running: Running
) -> None:
    with exports.serving("nbd", "disk", image) as info:
        load = verified(info["device"], 5)
        time.sleep(1)
        running.kill()
        time.sleep(1)
        running.start()
        running.ready()
        with relocating(image, 2, MiB):
            pass
        ended_well(load)
        assert exports.show("disk")["counters"]["errors"] == 0


def test_it_seals_again_after_everything_was_released(
    exports: Exports, image: Path, running: Running
) -> None:
    with exports.serving("nbd", "disk", image, "--io", "mapped") as info:
        running.kill()
        release(ServiceSection(socket=str(running.socket)))
        until(lambda: not (running.directory / "keeper.sock").exists())
        running.start()
        running.ready()
        until(lambda: exports.show("disk")["counters"]["seals"] == 2, what="another seal")
        until(lambda: exports.show("disk")["state"] == "serving")
        assert nbdsh(info["device"], TRIED.format("h.pwrite(b'x' * 512, 0)")).strip() == "done"
        with relocating(image, 1, MiB):  # the seal is one that is recalled
            pass
        until(lambda: exports.show("disk")["counters"]["seals"] >= 3)


def test_a_killed_server_leaves_its_writes_and_no_seal(
    exports: Exports, image: Path, running: Running
) -> None:
    written = os.urandom(MiB)
    with exports.serving("nbd", "disk", image) as info:
        source = exports.directory.parent / "source"
        source.write_bytes(written)
        nbdsh(info["device"], f"h.pwrite(open({str(source)!r}, 'rb').read(), {MiB}); h.flush()")
        os.kill(info["pid"], signal.SIGKILL)
        until(lambda: exports.show("disk")["state"] == "dead")
        with Client(str(running.socket)) as client:
            until(lambda: client.call(List).result.seals == [], what="the seal's end")
        assert image.read_bytes()[MiB : 2 * MiB] == written
        again = exports.call("recover", "disk")
        assert again["pid"] != info["pid"]
        assert nbdsh(again["device"], f"print(h.pread({MiB}, {MiB}) == open({str(source)!r}, 'rb')"
                     ".read())").strip() == "True"  # fmt: skip


def test_an_operators_recall_is_a_pause(exports: Exports, image: Path, running: Running) -> None:
    with exports.serving("nbd", "disk", image) as info, Client(str(running.socket)) as client:
        (seal,) = client.call(List).result.seals
        assert info["seal"]
        client.call(RecallSeals, path=str(image), wait=True)
        until(lambda: exports.show("disk")["counters"]["seals"] >= 2)
        until(lambda: exports.show("disk")["state"] == "serving")
        (after,) = client.call(List).result.seals
        assert (seal.file, seal.range) == (after.file, after.range)
        assert seal.id != after.id


def test_a_conflict_that_does_not_end_fails_requests_after_their_patience(
    exports: Exports, image: Path
) -> None:
    with exports.serving("nbd", "disk", image, "--patience", "500ms") as info:
        with image.open("r+b"):  # an exclusive seal is not had while somebody has the file open
            until(lambda: exports.show("disk")["state"] == "paused")
            assert "file-in-use" in exports.show("disk")["why"]
            assert nbdsh(info["device"], TRIED.format("h.pread(512, 0)")).strip() == "EIO"
        until(lambda: exports.show("disk")["state"] == "serving")
        assert nbdsh(info["device"], TRIED.format("h.pread(512, 0)")).strip() == "done"


def test_a_paused_export_can_be_stopped(exports: Exports, image: Path) -> None:
    info = exports.call("create", "--type", "nbd", "disk", image)
    with image.open("rb"):
        until(lambda: exports.show("disk")["state"] == "paused")
        reader = subprocess.Popen(
            ["nbdsh", "-u", info["device"], "-c", TRIED.format("h.pread(512, 0)")],
            env=SYSTEM,
            stdout=subprocess.PIPE,
            text=True,
        )
        until(lambda: exports.show("disk")["counters"] is not None)
        time.sleep(0.3)
        assert reader.poll() is None, "it should wait"
        # It ends by itself: it is killed only after ten minutes.
        exports.call("stop", "disk", "--timeout", "600s")
        assert reader.communicate(timeout=PATIENCE)[0].strip() != "done"


def test_a_discard_is_a_pause_where_it_is_allowed(exports: Exports, image: Path) -> None:
    with exports.serving("nbd", "disk", image, "--discard", "recall") as info:
        nbdsh(info["device"], f"h.trim({MiB}, {2 * MiB})")
        assert (
            nbdsh(info["device"], f"print(h.pread({MiB}, {2 * MiB}) == bytes({MiB}))") == "True\n"
        )
        shown = exports.show("disk")
        assert (shown["pauses"]["count"], shown["counters"]["errors"]) == (1, 0)


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--grace", "40s"), "--grace is 40 s and must be less than 30 s"),
        (("--initiator-timeout", "5s"), "--grace is 10 s and must be less than 5 s"),
        (("--patience", "30s"), "--patience is 30 s and must be less than 30 s"),
        (("-O", "speed=9"), "has no option speed"),
        (("-O", "listen=0"), "a number from 1 to 65535"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_left(
    exports: Exports, image: Path, more: tuple[str, ...], what: str
) -> None:
    done = exports.ask("create", "--type", "nbd", "disk", image, *more)
    assert done.returncode == 2
    assert what in done.stderr
    assert list(exports.directory.iterdir()) == []


def test_a_file_that_cannot_be_sealed_is_named(exports: Exports) -> None:
    done = exports.ask("create", "--type", "nbd", "disk", exports.directory)
    assert done.returncode == 1
    assert "did not start" in done.stderr
    assert f"opening {exports.directory}: Is a directory" in done.stderr
    assert list(exports.directory.iterdir()) == []
