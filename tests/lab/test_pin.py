"""The pin enforcer on real DAX: who waits, who is found, and what goes on when it is let go."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.enforce.pin import PinEnforcer
from sealsvc.linux import native
from sealsvc.protocol.seals import List, Recall, Reclaim, Return
from sealsvc.protocol.system import Audit
from tests.lab.dax_files import make
from tests.lab.kernels import SERIES
from tests.lab.pmem import is_held, mounted_dax
from tests.support.service import Running, served
from tests.support.waiting import PATIENCE

MiB = 1 << 20
CONFIG = 'accept_risks = ["all"]\n[enforcers]\nuse = ["pin"]\n'

HELD = {
    "truncate": "os.truncate(path, 4096)",
    "ftruncate": "os.ftruncate(os.open(path, os.O_RDWR), 4096)",
    "open-trunc": "os.open(path, os.O_RDWR | os.O_TRUNC)",
    "punch": "sc.fallocate(os.open(path, os.O_RDWR), 3, 65536, 65536)",
    "punch-elsewhere": "sc.fallocate(os.open(path, os.O_RDWR), 3, 983040, 65536)",
    "zero": "sc.fallocate(os.open(path, os.O_RDWR), 16, 65536, 65536)",
    "collapse": "sc.fallocate(os.open(path, os.O_RDWR), 8, 65536, 65536)",
    "insert": "sc.fallocate(os.open(path, os.O_RDWR), 32, 65536, 65536)",
}
# Two files are named: the pinned one by any of the arguments, and some of them in memory. XFS locks
# them in the order of their inode numbers, and does not sleep for the pages of the second.
SHARED = {
    "clone-of": "sc.clone(os.open(over, os.O_RDWR), os.open(path, os.O_RDONLY))",
    "clone-over": "sc.clone(os.open(path, os.O_RDWR), os.open(over, os.O_RDONLY))",
    "clone-range-of": "sc.clone_range(os.open(over, os.O_RDWR), os.open(path, os.O_RDONLY),"
    " 0, 65536)",
    "dedupe-of": "sc.dedupe_range(os.open(path, os.O_RDONLY), os.open(over, os.O_RDWR), 0, 4096)",
    "dedupe-over": "sc.dedupe_range(os.open(over, os.O_RDONLY), os.open(path, os.O_RDWR), 0, 4096)",
    "copy-of": "os.copy_file_range(os.open(path, os.O_RDONLY), os.open(over, os.O_RDWR), 65536,"
    " 0, 0)",
    "copy-over": "os.copy_file_range(os.open(over, os.O_RDONLY), os.open(path, os.O_RDWR), 65536,"
    " 0, 0)",
}
# The same paths through the kernel as their neighbours above.
REPEATED = ("clone-range-of", "dedupe-over", "copy-over")
WRITES = """
fd = os.open(path, os.O_RDWR)
while True:
    os.pwrite(fd, b"x" * 262144, 0)
"""
SWAPS_BOOT = "sc.ext4_command(os.open(path, os.O_RDWR), 0x6611)"
FREE = {
    "read": "os.pread(os.open(path, os.O_RDONLY), 4096, 0)",
    "write": "os.pwrite(os.open(path, os.O_RDWR), b'x' * 4096, 8192)",
    "rename": "os.rename(path, path + '.new'); os.rename(path + '.new', path)",
}
INTRUDER = """
import os, sys
from sealsvc.doctor import syscalls as sc
path, over = sys.argv[1], sys.argv[3]
try:
    exec(sys.argv[2])
except OSError as error:
    sys.exit(error.errno)
"""

pytestmark = [pytest.mark.lab, pytest.mark.timeout(200)]


@pytest.fixture(scope="module", params=["xfs", "ext4"])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    with mounted_dax(request.param, reflink=request.param == "xfs") as point:
        (point / "upper").mkdir()
        yield point


@pytest.fixture(scope="module")
def running(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with served(Running(tmp_path_factory.mktemp("daemon"), [root], CONFIG)) as made:
        yield made


@pytest.fixture
def file(root: Path) -> Iterator[Path]:
    made = root / "upper" / "file"
    made.write_bytes(os.urandom(MiB))
    yield made
    made.unlink()


@contextmanager
def intruding(path: Path, code: str, over: str = "") -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", INTRUDER, path, code, over])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def overlaid(root: Path) -> Iterator[Path]:
    """An overlay whose upper directory is the file's: what it truncates, nobody else sees."""
    for name in ("lower", "work", "merged"):
        (root / name).mkdir(exist_ok=True)
    options = f"lowerdir={root}/lower,upperdir={root}/upper,workdir={root}/work"
    merged = root / "merged"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", merged], check=True)


def granted(client: Client, file: Path) -> str:
    reply = client.grant(path=str(file), kind="shared", fence="signal", grace=200)
    os.close(reply.fds[0])
    assert reply.seal.enforcers == ["pin"]
    return reply.seal.id


def is_xfs(root: Path) -> bool:
    mounts = Path("/proc/mounts").read_text()
    return f" {root} xfs " in mounts


def refusal(call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("name", HELD)
def test_a_change_waits_is_found_and_goes_on(running: Running, file: Path, name: str) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        with intruding(file, HELD[name]) as intruder:
            recall = next(push for push in client.pushes(PATIENCE) if isinstance(push, Recall))
            assert recall.seal == seal
            assert recall.operation is not None
            assert recall.operation.pid == intruder.pid
            time.sleep(0.3)
            assert intruder.poll() is None
            client.call(Return, seal=seal)
            assert intruder.wait(PATIENCE) == 0


@pytest.mark.parametrize("other_first", [True, False])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.long] if n in REPEATED else []) for n in SHARED],
)
def test_sharing_a_pinned_file_has_it_recalled(
    running: Running, root: Path, file: Path, name: str, other_first: bool
) -> None:
    """One of the two orders spins in the kernel, unkillably, until the pin is let go."""
    if not is_xfs(root):
        pytest.skip("ext4 shares no blocks")
    made = [make(root / f"{name}-{number}", MiB) for number in range(2)]
    other, path = sorted(made, key=lambda path: path.stat().st_ino, reverse=not other_first)
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, path)
        with intruding(path, SHARED[name], str(other)) as intruder:
            assert next(p for p in client.pushes(PATIENCE) if isinstance(p, Recall)).seal == seal
            assert intruder.poll() is None
            client.call(Return, seal=seal)
            assert intruder.wait(PATIENCE) == 0


def test_a_truncation_through_an_overlay_waits(running: Running, root: Path, file: Path) -> None:
    """No other enforcer but bpf is met by it. The mount alone has the seal recalled."""
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        with (
            overlaid(root) as merged,
            intruding(file, "os.truncate(over, 4096)", str(merged / "file")) as intruder,
        ):
            assert next(p for p in client.pushes(PATIENCE) if isinstance(p, Recall)).seal == seal
            time.sleep(2)
            assert intruder.poll() is None
            client.call(Return, seal=seal)
            assert intruder.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", FREE)
def test_what_keeps_the_map_goes_on(running: Running, file: Path, name: str) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        with intruding(file, FREE[name]) as bystander:
            assert bystander.wait(PATIENCE) == 0
        client.call(Return, seal=seal)


def test_a_pinned_file_can_be_unlinked_and_its_holder_can_map(running: Running, root: Path) -> None:
    path = root / "doomed"
    path.write_bytes(bytes(MiB))
    with Client(str(running.socket), timeout=PATIENCE) as client:
        reply = client.grant(path=str(path), kind="shared", fence="signal", grace=200)
        with mmap.mmap(reply.fds[0], MiB) as mapping:
            os.close(reply.fds[0])
            path.unlink()
            mapping[:4] = b"mine"
        client.call(Return, seal=reply.seal.id)
        assert client.call(List).result.seals == []


def test_pins_outlive_the_service(running: Running, file: Path) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        running.kill()
        with intruding(file, HELD["truncate"]) as intruder:
            time.sleep(0.5)
            assert intruder.poll() is None
            running.start()
            running.ready()
            client.reconnect(PATIENCE)
            client.call(Reclaim, seal=seal)
            assert next(p for p in client.pushes(PATIENCE) if isinstance(p, Recall)).seal == seal
            client.call(Return, seal=seal)
            assert intruder.wait(PATIENCE) == 0


def test_one_seal_a_file(running: Running, file: Path) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        assert refusal(lambda: granted(client, file)).code == "seal-conflict"
        client.call(Return, seal=seal)


def test_a_pinned_map_is_looked_at_unless_somebody_waits(running: Running, file: Path) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        report = client.call(Audit).result
        assert (report.checked, report.drifted, report.unreadable) == (1, [], [])
        with intruding(file, HELD["punch"]) as intruder:
            assert next(p for p in client.pushes(PATIENCE) if isinstance(p, Recall)).seal == seal
            report = client.call(Audit).result
            assert report.checked == 0
            assert "its lock is held" in report.unreadable[0]
            client.call(Return, seal=seal)
            assert intruder.wait(PATIENCE) == 0


@pytest.mark.lab(kernel=SERIES)
def test_they_are_taken_only_where_they_hold(file: Path) -> None:
    """What the enforcer says of this kernel is so, of a file that nobody maps."""
    why_not = PinEnforcer(None).probe()  # type: ignore[arg-type]
    ends = native.ffi.new("int[2]")
    with file.open("rb") as opened:
        assert native.lib.seal_pin(opened.fileno(), 0, ends) == 0
        truncation = subprocess.Popen(["truncate", "-s", "4K", file])
        held = is_held(truncation)
        os.close(ends[0])
        os.close(ends[1])
        assert truncation.wait(PATIENCE) == 0
    assert held == (why_not == ""), why_not


def test_who_writes_all_the_time_recalls_nothing(running: Running, file: Path) -> None:
    """Writers hold the lock that is looked at, but not on end."""
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        with intruding(file, WRITES), intruding(file, WRITES):
            assert not [push for push in client.pushes(6) if isinstance(push, Recall)]
        client.call(Return, seal=seal)


def test_what_pins_cannot_do_is_refused(running: Running, file: Path) -> None:
    with Client(str(running.socket), timeout=PATIENCE) as client:
        for fields in ({"kind": "exclusive"}, {"kind": "shared", "conflict": "refuse"}):
            found = refusal(lambda fields=fields: client.grant(path=str(file), **fields))
            assert found.code == "enforcer-unavailable"
            assert "pin:" in found.message


def test_a_fence_of_none_is_refused(running: Running, file: Path) -> None:
    """Whoever waits on a pin cannot be told EBUSY when the deadline has passed."""
    with Client(str(running.socket), timeout=PATIENCE) as client:
        found = refusal(lambda: client.grant(path=str(file), kind="shared", fence="none"))
        assert (found.code, found.details["fence"]) == ("denied", "none")
        granted(client, file)  # nothing was left behind


UNHELD = {
    "ext4": ["ext4-move-ext", "ext4-swap-boot", "ext4-inode-flags"],
    "xfs": ["xfs-swapext"],
}


def test_what_waits_for_no_pin_is_a_risk_by_name(root: Path, file: Path, tmp_path: Path) -> None:
    with (
        served(Running(tmp_path, [root], '[enforcers]\nuse = ["pin"]\n')) as careful,
        Client(str(careful.socket), timeout=PATIENCE) as client,
    ):
        found = refusal(lambda: granted(client, file))
    assert found.code == "risk-not-accepted"
    assert found.details["risks"] == UNHELD["xfs" if is_xfs(root) else "ext4"]


def test_what_waits_for_no_pin_is_found_by_the_audit(running: Running, root: Path) -> None:
    if is_xfs(root):
        pytest.skip("EXT4_IOC_SWAP_BOOT")
    file = make(root / "swapped", MiB)
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        with intruding(file, SWAPS_BOOT) as intruder:
            assert intruder.wait(PATIENCE) == 0
        assert [drift.seal for drift in client.call(Audit).result.drifted] == [seal]
