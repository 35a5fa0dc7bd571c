"""The tripwire in the kernel: whatever changes a sealed map is told, by whomever it is done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.doctor import syscalls
from sealsvc.enforce.base import Listener
from sealsvc.enforce.bpf import BpfEnforcer
from sealsvc.enforce.trips import Trip
from sealsvc.linux.host import Target
from sealsvc.protocol.seals import Return
from sealsvc.protocol.system import Status
from sealsvc.runtime.config import ServiceSection
from tests.lab.kernels import SERIES
from tests.lab.test_bpf import (
    CHUNK,
    ELSEWHERE,
    HARMLESS,
    INSIDE,
    KEEP,
    OUTSIDE,
    PUNCH,
    SEALED,
    SIZE,
    Act,
    bpf,
    conflicting,
    guard,
    host,
    release,
    scene,
    scratch,
    sealed_map,
)
from tests.service.test_seal_ends import state
from tests.support.service import RISKS, Running, served
from tests.support.waiting import PATIENCE, until

pytestmark = [pytest.mark.lab, pytest.mark.kernel, pytest.mark.slow]
on_each_kernel = pytest.mark.lab(kernel=SERIES)

# Of what conflicts, in this scene: what only shares or marks blocks, and moves none.
MOVE_NOTHING = {"loop", "clone-source", "copy-source", "dedupe-source"}


@pytest.fixture(scope="module", params=["xfs", "ext4", "ext4-indirect"])
def root(request: pytest.FixtureRequest) -> Iterator[Path]:
    name, _, indirect = request.param.partition("-")
    with scratch(name, ["-O", "^extent,^64bit"] if indirect else []) as point:
        yield point


@pytest.fixture(scope="module")
def loaded() -> Iterator[BpfEnforcer]:
    host()
    enforcer = bpf(directory=ELSEWHERE)
    assert enforcer.probe() == ""
    yield enforcer
    enforcer.stop()
    assert not enforcer.directory.exists()


@pytest.fixture(scope="module")
def armed(root: Path, loaded: BpfEnforcer) -> BpfEnforcer:
    """Before the first test counts its descriptors."""
    with scene(root) as (target, _):
        loaded.arm(target.filesystem, target.fd)
    return loaded


@pytest.fixture
def trips(armed: BpfEnforcer) -> Iterator[list[Trip]]:
    told: list[Trip] = []
    armed.start(Listener(conflict=lambda report: None, tripped=told.append))
    armed.drain()
    told.clear()
    yield told
    armed.keep_only(set())


def drained(enforcer: BpfEnforcer, trips: list[Trip]) -> list[Trip]:
    trips.clear()
    enforcer.drain()
    return list(trips)


def tried(
    root: Path, enforcer: BpfEnforcer, trips: list[Trip], act: Act, *, atomic: bool
) -> tuple[bool, list[Trip]]:
    """As the service, which the programs that refuse let pass: whether the sealed map is another
    after it, and what was told."""
    with scene(root) as (target, other):
        flags = os.O_RDWR | os.O_DIRECT if atomic else os.O_RDWR
        fd = os.open(target.path, flags)
        hold = enforcer.hold(target, guard())
        try:
            drained(enforcer, trips)
            before = places(target)
            with suppress(OSError):
                act(fd, Path(target.path), other)
            os.fsync(fd)
            return places(target) != before, drained(enforcer, trips)
        finally:
            hold.release()
            os.close(fd)


def places(target: Target) -> list[tuple[int, int]]:
    """The place of each block of the sealed range: what is promised, however it is recorded."""
    return [
        (logical + at, physical + at)
        for logical, physical, length in sealed_map(target)
        for at in range(0, length, 4096)
        if SEALED.offset <= logical + at < SEALED.end
    ]


def acts(root: Path) -> dict[str, Act]:
    with scene(root) as (target, _):
        return conflicting(target)


@on_each_kernel
def test_each_change_is_told_and_nothing_else(
    root: Path, loaded: BpfEnforcer, trips: list[Trip]
) -> None:
    moved, silent, loud = [], [], []
    for name, act in (acts(root) | HARMLESS).items():
        changed, told = tried(root, loaded, trips, act, atomic=name.startswith("atomic"))
        moved += [name] if changed else []
        silent += [name] if changed and not told else []
        loud += [name] if told and (name in HARMLESS or name in MOVE_NOTHING) else []
        for trip in told:
            assert trip.overlaps(SEALED)
            assert trip.uid == 0
            # What waits for its data is done by the kernel, on behalf of whoever wrote.
            assert trip.pid == os.getpid() or trip.comm.startswith("kworker")
            assert trip.stack
    assert silent == []
    assert loud == []
    expected = {"ftruncate", "truncate", "open-truncate", "punch", "madvise-remove"}
    assert expected <= set(moved)
    assert set(moved) & (set(HARMLESS) | MOVE_NOTHING) == set()


def test_it_says_what_where_and_by_which_way(
    root: Path, loaded: BpfEnforcer, trips: list[Trip]
) -> None:
    def punch(fd: int, path: Path, other: int) -> None:
        syscalls.fallocate(fd, PUNCH | KEEP, INSIDE, CHUNK)

    _, told = tried(root, loaded, trips, punch, atomic=False)
    [trip] = {(trip.offset, trip.length): trip for trip in told}.values()
    assert (trip.offset, trip.length) == (INSIDE, CHUNK)
    assert any("vfs_fallocate" in symbol for symbol in trip.symbols())
    named = {"xfs_bmap_del_extent_real", "ext4_ext_remove_space", "ext4_ind_remove_space"}
    if release() >= (6, 6):
        assert trip.certain
    else:
        named.add("__xfs_bunmapi")
    assert trip.function in named


def test_what_is_below_or_not_sealed_or_being_made_is_not_told(
    root: Path, loaded: BpfEnforcer, trips: list[Trip]
) -> None:
    with scene(root) as (target, other):
        hold = loaded.hold(target, guard())
        drained(loaded, trips)
        syscalls.fallocate(target.fd, PUNCH | KEEP, 0, CHUNK)
        syscalls.fallocate(target.fd, PUNCH | KEEP, OUTSIDE, CHUNK)
        os.ftruncate(target.fd, OUTSIDE)
        os.ftruncate(other, 0)
        assert drained(loaded, trips) == []
        hold.release()
        os.ftruncate(target.fd, 0)
        assert drained(loaded, trips) == []


@on_each_kernel
def test_no_program_is_missing_but_what_the_kernel_cannot_have(
    root: Path, loaded: BpfEnforcer, trips: list[Trip]
) -> None:
    with scene(root) as (target, _):
        loaded.hold(target, guard()).release()
    missing = [said.split(":")[0].rpartition(" ")[2] for said in loaded.untripped()]
    # Before v6.6 x86 traces no function of more than six parameters.
    late = {"xfs_del_extent", "ext4_swap"} if release() < (6, 6) else set()
    assert set(missing) <= late


# The service


@pytest.fixture(scope="module")
def running(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    more = RISKS + '[enforcers]\nuse = ["bpf"]\n'
    # No audit comes that would find it as well.
    made = Running(tmp_path_factory.mktemp("tripped"), [root], more, "audit_interval = 0\n")
    made.may_trip = True
    with served(made):
        yield made


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(str(running.socket), timeout=PATIENCE) as made:
        yield made


def intrude(running: Running, act: str, *files: Path) -> int:
    """By another process, which the service's programs let pass: its pid."""
    pins = ServiceSection(socket=str(running.socket)).bpf_path
    process = subprocess.Popen([sys.executable, "-m", "tests.lab.unjudged", pins, act, *files])
    assert process.wait(PATIENCE) == 0
    return process.pid


def sealed(client: Client, path: Path) -> str:
    path.write_bytes(os.urandom(SIZE))
    os.sync()
    reply = client.grant(path=str(path), kind="shared", conflict="refuse")
    os.close(reply.fds[0])
    return reply.seal.id


def test_the_seal_is_lost_at_once_with_the_evidence(
    running: Running, client: Client, root: Path
) -> None:
    path = root / "tripped"
    seal = sealed(client, path)
    pid = intrude(running, "punch", path)
    until(lambda: state(client, seal) == "lost", what="the trip")
    until(lambda: "its stack" in running.log.read_text(), what="the alarm")
    said = next(line for line in running.log.read_text().splitlines() if "its stack" in line)
    assert f"process {pid} (python" in said
    assert "bytes 65536 to 131072" in said
    assert "vfs_fallocate" in said
    assert str(path) in said
    client.call(Return, seal=seal)


def test_a_map_that_is_the_same_again_was_changed_nonetheless(
    running: Running, client: Client, root: Path, request: pytest.FixtureRequest
) -> None:
    if "indirect" in request.node.name:
        pytest.skip("EXT4_IOC_MOVE_EXT moves extents alone")
    if release() < (6, 10):
        pytest.skip("the function that is certain about it cannot be traced before v6.6")
    path, other = root / "back", root / "other"
    other.write_bytes(os.urandom(SIZE))
    seal = sealed(client, path)
    intrude(running, "exchange" if "xfs" in str(root) else "move", path, other)
    until(lambda: state(client, seal) == "lost", what="the trip")
    client.call(Return, seal=seal)


def test_the_status_says_what_is_missing(client: Client) -> None:
    [enforcer] = [e for e in client.call(Status).result.enforcers if e.name == "bpf"]
    assert enforcer.available
    assert bool(enforcer.limits) == (release() < (6, 6))
