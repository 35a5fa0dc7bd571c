"""The bpf enforcer in the lab: what it refuses, what it lets pass, and what outlives it."""

from __future__ import annotations

import errno
import mmap
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange, Gap, Kind
from sealsvc.doctor import syscalls, uring
from sealsvc.enforce.base import Guard, Listener, Report, Verdict
from sealsvc.enforce.bpf import DIRECTORY, BpfEnforcer
from sealsvc.linux import native
from sealsvc.linux.host import Target
from sealsvc.linux.host.kernel import KernelHost
from tests.lab.kernels import SERIES
from tests.lab.pmem import mounted_dax
from tests.support.scratch import mounted
from tests.support.waiting import PATIENCE, until

KiB, MiB = 1 << 10, 1 << 20
SIZE = 4 * MiB
SEALED = ByteRange(1 * MiB, 1 * MiB)
INSIDE, OUTSIDE = SEALED.offset, 3 * MiB
CHUNK = 64 * KiB
PUNCH, KEEP, COLLAPSE, ZERO, INSERT, UNSHARE = 0x02, 0x01, 0x08, 0x10, 0x20, 0x40
RWF_ATOMIC = 0x40
EBUSY, ETXTBSY = errno.EBUSY, errno.ETXTBSY

pytestmark = [
    pytest.mark.lab(kernel=SERIES),
    pytest.mark.kernel,
    pytest.mark.slow,
]

Act = Callable[[int, Path, int], object]


class NoKeeper:
    """Keeps nothing: the descriptors under test live in this process."""

    def keep(self, name: str, fd: int) -> None:
        pass

    def prover(self, fd: int) -> None:
        pass

    def canary(self, fd: int, trials: int) -> tuple[int, int]:
        return 0, 0

    def try_canary(self) -> tuple[int, int]:
        return 0, 0

    def drop(self, name: str) -> None:
        pass


# Where `loaded` does not pin.
ELSEWHERE = DIRECTORY.with_name("sealsvc-elsewhere")


def bpf(**options: Any) -> BpfEnforcer:
    return BpfEnforcer(NoKeeper(), **options)  # type: ignore[arg-type]


@contextmanager
def scratch(name: str, mkfs: Sequence[str] = ()) -> Iterator[Path]:
    """A mounted file system by its name: xfs, ext4, xfs-dax, ext4-dax; `mkfs` are arguments."""
    fstype, _, dax = name.partition("-")
    if dax:
        with mounted_dax(fstype, reflink=fstype == "xfs") as point:
            yield point
    else:
        reflink = ["-m", "reflink=1"] if fstype == "xfs" else []
        with mounted(fstype, mkfs_args=[*reflink, *mkfs]) as point:
            yield point


@pytest.fixture(scope="module", params=["xfs", "ext4", "xfs-dax", "ext4-dax"])
def root(request: pytest.FixtureRequest, loaded: BpfEnforcer) -> Iterator[Path]:
    with scratch(request.param) as point:
        arm(loaded, point)
        yield point


@pytest.fixture(scope="module")
def xfs_root() -> Iterator[Path]:
    with scratch("xfs") as point:
        yield point


@pytest.fixture(scope="module")
def loaded() -> Iterator[BpfEnforcer]:
    """Once: an emulated processor verifies the programs for seconds."""
    enforcer = bpf()
    assert enforcer.probe() == ""
    yield enforcer
    enforcer.stop()
    assert not enforcer.directory.exists()


@pytest.fixture
def enforcer(loaded: BpfEnforcer) -> Iterator[BpfEnforcer]:
    """With no reports from before, and nothing that it guards."""
    loaded.start(Listener(lambda report: None, lambda trip: None))
    loaded.drain()
    yield loaded
    loaded.keep_only(set())


def write(path: Path, size: int = SIZE) -> Path:
    """A new file of this name."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(os.urandom(CHUNK) * (size // CHUNK))
        os.fsync(file.fileno())
    return path


@cache
def host() -> KernelHost:
    """It watches the machine's mounts: one is enough."""
    return KernelHost()


@pytest.fixture(scope="module", autouse=True)
def host_of_the_module() -> None:
    """Before the first test counts its descriptors."""
    host()


@contextmanager
def opened(root: Path, name: str = "sealed") -> Iterator[Target]:
    target = host().open_path(str(root / name), [str(root)], writable=True)
    try:
        yield target
    finally:
        os.close(target.fd)


def arm(loaded: BpfEnforcer, root: Path) -> None:
    """Before the first test counts its descriptors: what is attached stays."""
    write(root / "first")
    with opened(root, "first") as target:
        loaded.arm(target.filesystem, target.fd)


def guard(token: int = 7, **more: object) -> Guard:
    values = {
        "range": SEALED, "holder": 0, "exclusive": False, "verdict": Verdict.REFUSE, **more,
    }  # fmt: skip
    return Guard(token=token, **values)  # type: ignore[arg-type]


def in_child(function: Callable[[], object]) -> int:
    """The errno that `function` ends with in another process; 0: it went well."""
    pid = os.fork()
    if pid == 0:
        status = 254
        try:
            function()
            status = 0
        except OSError as error:
            status = error.errno or 253
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def sealed_map(target: Target) -> list[list[int]]:
    return [list(map(int, row[:3])) for row in native.read_extents(target.fd, SEALED)]


BUFFER = syscalls.aligned(b"x" * 16 * KiB)


def remove(fd: int, at: int) -> None:
    with mmap.mmap(fd, SIZE, mmap.MAP_SHARED) as mapping:
        syscalls.madvise_remove(mapping, at, CHUNK)


def open_truncate(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_TRUNC))


def ring(opcode: int, fd: int, **fields: int) -> None:
    uring.submit(uring.Entry(opcode, fd, **fields))


# By name: what is done with a descriptor of the sealed file, its path, and one of another file.
EVERYWHERE: dict[str, Act] = {
    "ftruncate": lambda fd, path, other: os.ftruncate(fd, INSIDE),
    "truncate": lambda fd, path, other: os.truncate(path, 0),
    "open-truncate": lambda fd, path, other: open_truncate(path),
    "punch": lambda fd, path, other: syscalls.fallocate(fd, PUNCH | KEEP, INSIDE, CHUNK),
    "zero": lambda fd, path, other: syscalls.fallocate(fd, ZERO, INSIDE, CHUNK),
    "collapse": lambda fd, path, other: syscalls.fallocate(fd, COLLAPSE, 0, CHUNK),
    "insert": lambda fd, path, other: syscalls.fallocate(fd, INSERT, 0, CHUNK),
    "madvise-remove": lambda fd, path, other: remove(fd, INSIDE),
    "unresvsp": lambda fd, path, other: syscalls.unreserve_space(fd, INSIDE, CHUNK),
    "uring-fallocate": lambda fd, path, other: ring(
        uring.FALLOCATE, fd, off=INSIDE, addr=CHUNK, length=PUNCH | KEEP
    ),
    "loop": lambda fd, path, other: os.close(syscalls.attach_loop(fd)),
}
NEW_IN_6_9: dict[str, Act] = {
    "uring-ftruncate": lambda fd, path, other: ring(uring.FTRUNCATE, fd, off=INSIDE),
}
XFS: dict[str, Act] = {
    "clone-source": lambda fd, path, other: syscalls.clone(other, fd),
    "clone-destination": lambda fd, path, other: syscalls.clone(fd, other),
    "clone-range": lambda fd, path, other: syscalls.clone_range(fd, other, INSIDE, CHUNK),
    "copy-source": lambda fd, path, other: os.copy_file_range(fd, other, CHUNK, INSIDE, 0),
    "copy-destination": lambda fd, path, other: os.copy_file_range(other, fd, CHUNK, 0, INSIDE),
    "dedupe-source": lambda fd, path, other: syscalls.dedupe_range(fd, other, INSIDE, CHUNK),
    "dedupe-destination": lambda fd, path, other: syscalls.dedupe_range(other, fd, INSIDE, CHUNK),
    "zero-space": lambda fd, path, other: syscalls.zero_space(fd, INSIDE, CHUNK),
    "swap-target": lambda fd, path, other: syscalls.swap_extents(fd, other),
    "swap-donor": lambda fd, path, other: syscalls.swap_extents(other, fd),
}
EXCHANGE: dict[str, Act] = {  # since v6.10
    "exchange-1": lambda fd, path, other: syscalls.exchange_range(other, fd, INSIDE, CHUNK),
    "exchange-2": lambda fd, path, other: syscalls.exchange_range(fd, other, INSIDE, CHUNK),
}
ATOMIC: dict[str, Act] = {  # since v6.16
    "atomic": lambda fd, path, other: syscalls.write_atomic(fd, [BUFFER], INSIDE),
    "atomic-aio": lambda fd, path, other: uring.aio_write(fd, BUFFER, INSIDE, RWF_ATOMIC),
    "atomic-uring": lambda fd, path, other: ring(
        uring.WRITE, fd, off=INSIDE, addr=syscalls.address(BUFFER), length=16 * KiB,
        flags=RWF_ATOMIC,
    ),
}  # fmt: skip
EXT4: dict[str, Act] = {
    "move-original": lambda fd, path, other: syscalls.move_extents(fd, other, INSIDE, CHUNK),
    "move-donor": lambda fd, path, other: syscalls.move_extents(other, fd, INSIDE, CHUNK),
}
HARMLESS: dict[str, Act] = {
    "pwrite": lambda fd, path, other: os.pwrite(fd, b"y" * 4096, INSIDE),
    "append": lambda fd, path, other: os.pwrite(fd, b"y" * 4096, SIZE),
    "read": lambda fd, path, other: os.pread(fd, 4096, INSIDE),
    "open": lambda fd, path, other: os.close(os.open(path, os.O_RDWR)),
    "allocate": lambda fd, path, other: syscalls.fallocate(fd, 0, 0, SIZE),
    "punch-outside": lambda fd, path, other: syscalls.fallocate(fd, PUNCH | KEEP, OUTSIDE, CHUNK),
    "zero-outside": lambda fd, path, other: syscalls.fallocate(fd, ZERO, OUTSIDE, CHUNK),
    "truncate-outside": lambda fd, path, other: os.ftruncate(fd, OUTSIDE),
    "grow": lambda fd, path, other: os.ftruncate(fd, 2 * SIZE),
    "uring-write": lambda fd, path, other: ring(
        uring.WRITE, fd, off=INSIDE, addr=syscalls.address(BUFFER), length=4096
    ),
    "other-file": lambda fd, path, other: syscalls.fallocate(other, PUNCH | KEEP, 0, CHUNK),
    "rename": lambda fd, path, other: (
        path.rename(path.with_suffix(".x")),
        path.with_suffix(".x").rename(path),
    ),
    "chmod": lambda fd, path, other: path.chmod(0o600),
    "link": lambda fd, path, other: (os.link(path, f"{path}.l"), os.unlink(f"{path}.l")),
}


def release() -> tuple[int, int]:
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int(minor)


def conflicting(target: Target) -> dict[str, Act]:
    acts = dict(EVERYWHERE)
    fs, dax = target.filesystem, target.filesystem.dax
    if release() >= (6, 9):
        acts |= NEW_IN_6_9
    if fs.type == "ext4":
        acts |= EXT4
    else:
        acts |= XFS
        if release() >= (6, 10) and not dax:
            acts |= EXCHANGE
        if release() >= (6, 16) and not dax:
            acts |= ATOMIC
    return acts


def meets(acts: dict[str, Act], target: Target, other: int) -> dict[str, int]:
    flags = os.O_RDWR if target.filesystem.dax else os.O_RDWR | os.O_DIRECT
    fd = os.open(target.path, os.O_RDWR)
    direct = os.open(target.path, flags)
    try:
        return {
            name: in_child(
                lambda act=act, name=name: act(  # type: ignore[misc]
                    direct if name.startswith("atomic") else fd, Path(target.path), other
                )
            )
            for name, act in acts.items()
        }
    finally:
        os.close(fd)
        os.close(direct)


@contextmanager
def scene(root: Path) -> Iterator[tuple[Target, int]]:
    write(root / "sealed")
    write(root / "other").write_bytes((root / "sealed").read_bytes())  # dedupe wants them equal
    other = os.open(root / "other", os.O_RDWR)
    os.fsync(other)
    try:
        with opened(root) as target:
            yield target, other
    finally:
        os.close(other)


def test_what_conflicts_is_refused_and_the_map_stays(root: Path, enforcer: BpfEnforcer) -> None:
    reports: list[Report] = []
    enforcer.start(Listener(reports.append, lambda trip: None))
    with scene(root) as (target, other):
        early = os.open(target.path, os.O_RDWR)  # a descriptor from before the grant
        acts = conflicting(target)
        hold = enforcer.hold(target, guard())
        before = sealed_map(target)
        found = meets(acts, target, other)
        assert found == dict.fromkeys(acts, ETXTBSY)
        assert in_child(lambda: os.ftruncate(early, 0)) == ETXTBSY
        assert in_child(lambda: syscalls.fallocate(early, PUNCH | KEEP, INSIDE, 4096)) == ETXTBSY
        assert sealed_map(target) == before
        enforcer.drain()
        assert len(reports) >= len(acts)
        assert all(report.tokens == (7,) and report.error == ETXTBSY for report in reports)
        hold.change(Verdict.BUSY)
        assert in_child(lambda: os.ftruncate(early, 0)) == EBUSY
        hold.release()
        hold.release()
        assert in_child(lambda: os.ftruncate(early, 0)) == 0
        os.close(early)


def test_the_same_goes_through_without_a_seal(root: Path, enforcer: BpfEnforcer) -> None:
    """Else a refusal would prove nothing."""
    with scene(root) as (target, _):
        acts = conflicting(target)
    if target.filesystem.type == "ext4" and target.filesystem.dax:
        acts = {name: act for name, act in acts.items() if name not in EXT4}  # EOPNOTSUPP
    found = {}
    for name, act in acts.items():
        with scene(root) as (target, other):
            found |= meets({name: act}, target, other)
    assert found == dict.fromkeys(acts, 0)


def test_what_is_harmless_passes(root: Path, enforcer: BpfEnforcer) -> None:
    with scene(root) as (target, other):
        hold = enforcer.hold(target, guard())
        before = sealed_map(target)
        assert meets(HARMLESS, target, other) == dict.fromkeys(HARMLESS, 0)
        assert sealed_map(target) == before
        assert in_child(lambda: os.ftruncate(target.fd, 0)) == ETXTBSY
        os.ftruncate(target.fd, OUTSIDE)  # the service itself
        hold.release()


def test_through_an_overlay(xfs_root: Path, enforcer: BpfEnforcer) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (xfs_root / name).mkdir()
    write(xfs_root / "upper" / "sealed")
    subprocess.run(
        ["mount", "-t", "overlay", "-o",
         f"lowerdir={xfs_root}/lower,upperdir={xfs_root}/upper,workdir={xfs_root}/work",
         "overlay", str(xfs_root / "merged")],
        check=True,
    )  # fmt: skip
    try:
        with opened(xfs_root / "upper") as target:
            hold = enforcer.hold(target, guard(behind="fanotify"))
            merged = xfs_root / "merged" / "sealed"
            assert in_child(lambda: os.truncate(merged, 0)) == ETXTBSY
            hold.release()
    finally:
        subprocess.run(["umount", str(xfs_root / "merged")], check=True)


def test_exclusive(root: Path, enforcer: BpfEnforcer) -> None:
    write(root / "sealed")
    with opened(root) as target:
        other = os.open(target.path, os.O_RDONLY)
        with pytest.raises(Refusal) as refused:
            enforcer.hold(target, guard(exclusive=True, holder=os.getpid()))
        assert refused.value.code == "file-in-use"
        os.close(other)
        hold = enforcer.hold(target, guard(exclusive=True, holder=os.getpid()))
        assert hold.anchor >= 0
        path = target.path
        assert in_child(lambda: os.open(path, os.O_RDONLY)) == ETXTBSY
        assert in_child(lambda: os.open(path, os.O_PATH)) == 0
        os.chmod(path, 0o755)
        assert in_child(lambda: os.execv(path, [path])) == ETXTBSY
        hold.release()
        assert in_child(lambda: os.open(path, os.O_RDONLY)) == 0


def test_behind_fanotify_what_it_does_not_see_is_refused(root: Path, enforcer: BpfEnforcer) -> None:
    """Nothing watches here. On 6.14 and later the kernel then says that descriptors are unwatched;
    before, there is no fanotify to stand in front."""
    with scene(root) as (target, other):
        kind = target.filesystem.type
        hold = enforcer.hold(target, guard(behind="fanotify", verdict=Verdict.WAIT))
        assert hold.anchor == -1
        acts = {name: EVERYWHERE[name] for name in ("ftruncate", "loop")}
        acts |= EXT4 if kind == "ext4" else {n: XFS[n] for n in ("swap-target", "swap-donor")}
        if release() >= (6, 14):
            acts |= {"punch": EVERYWHERE["punch"]}
        assert meets(acts, target, other) == dict.fromkeys(acts, ETXTBSY)
        hold.release()


def test_behind_a_lease_only_opens_pass(xfs_root: Path, enforcer: BpfEnforcer) -> None:
    write(xfs_root / "sealed")
    with opened(xfs_root) as target:
        own = guard(exclusive=True, holder=1, behind="lease", verdict=Verdict.WAIT)
        hold = enforcer.hold(target, own)
        assert in_child(lambda: os.open(target.path, os.O_RDWR)) == 0
        assert in_child(lambda: os.ftruncate(target.fd, 0)) == ETXTBSY
        hold.release()


@pytest.mark.parametrize("root", ["xfs-dax", "ext4-dax"], indirect=True)
def test_a_truncation_that_has_passed_its_hook_is_waited_for(
    root: Path, enforcer: BpfEnforcer
) -> None:
    """As a grant does: hold, then read the map, which must not be the one of before."""

    def seal(target: Target) -> int:
        enforcer.hold(target, guard()).release()
        return len(native.read_extents(target.fd, SEALED))

    with ExitStack() as stack:
        path = write(root / "sealed")
        target = stack.enter_context(opened(root))
        pipe = native.ffi.new("int[2]")
        # Holds truncations up past the hook; before Linux 6.15 only while the file is mapped.
        stack.enter_context(mmap.mmap(target.fd, 4096, prot=mmap.PROT_READ))
        assert native.lib.seal_pin(target.fd, 0, pipe) == 0
        ends = stack.enter_context(ExitStack())
        ends.callback(os.close, pipe[0])
        ends.callback(os.close, pipe[1])
        truncation = subprocess.Popen(["truncate", "-s", "4K", path])
        asleep = Path(f"/proc/{truncation.pid}/wchan")
        until(lambda: re.search("wait_dax_page|break.*_layout", asleep.read_text()) is not None)
        with ThreadPoolExecutor(1) as pool:
            sealing = pool.submit(seal, target)
            waited = not wait([sealing], 1).done
            ends.close()
            assert truncation.wait(PATIENCE) == 0
            assert waited
            assert sealing.result(PATIENCE) == 0


def test_many_seals_on_one_file(xfs_root: Path, enforcer: BpfEnforcer) -> None:
    write(xfs_root / "sealed")
    with opened(xfs_root) as target:
        holds = [
            enforcer.hold(target, guard(token, range=ByteRange(token * 4096, 4096)))
            for token in range(64)
        ]
        with pytest.raises(Refusal) as refused:
            enforcer.hold(target, guard(64, range=ByteRange(64 * 4096, 4096)))
        assert refused.value.code == "limit-reached"
        fd, at = target.fd, 63 * 4096
        assert in_child(lambda: syscalls.fallocate(fd, PUNCH | KEEP, at, 4096)) == ETXTBSY
        holds[63].release()
        assert in_child(lambda: syscalls.fallocate(fd, PUNCH | KEEP, at, 4096)) == 0
        enforcer.keep_only({0})
        assert in_child(lambda: os.ftruncate(fd, 4096)) == 0
        assert in_child(lambda: os.ftruncate(fd, 0)) == ETXTBSY
        for hold in holds:
            hold.release()


def test_a_killed_service_leaves_its_refusals_and_the_next_takes_over(xfs_root: Path) -> None:
    write(xfs_root / "sealed")
    ready, told = os.pipe()
    service = os.fork()
    if service == 0:
        enforcer = bpf(directory=ELSEWHERE)
        with opened(xfs_root) as target:
            reason = enforcer.probe()
            if not reason:
                enforcer.hold(target, guard())
            os.write(told, reason.encode() or b"held")
            signal.pause()
        os._exit(1)
    assert os.read(ready, 400) == b"held"
    os.kill(service, signal.SIGKILL)
    os.waitpid(service, 0)
    with opened(xfs_root) as target:
        assert in_child(lambda: os.ftruncate(target.fd, 0)) == ETXTBSY
        # While the next service starts there is no moment without a refusal.
        stop, go_on = os.pipe()
        watcher = os.fork()
        if watcher == 0:
            os.close(go_on)
            os.set_blocking(stop, False)
            for _ in range(1_000_000):
                with suppress(OSError):
                    os.ftruncate(target.fd, 0)
                    os._exit(1)
                with suppress(BlockingIOError):
                    if os.read(stop, 1) == b"":
                        os._exit(0)
            os._exit(0)
        os.close(stop)
        enforcer = bpf(directory=ELSEWHERE)
        assert enforcer.probe() == ""
        os.close(go_on)
        assert os.waitstatus_to_exitcode(os.waitpid(watcher, 0)[1]) == 0
        reports: list[Report] = []
        enforcer.start(Listener(reports.append, lambda trip: None))
        enforcer.drain()
        assert reports, "the backlog of the ring is read"
        assert in_child(lambda: os.ftruncate(target.fd, 0)) == ETXTBSY
        enforcer.stop()  # with a seal in force: everything stays
        assert in_child(lambda: os.ftruncate(target.fd, 0)) == ETXTBSY
        assert enforcer.probe() == ""
        enforcer.keep_only(set())
        assert in_child(lambda: os.ftruncate(target.fd, 0)) == 0
        enforcer.stop()
        assert not enforcer.directory.exists()
    os.close(ready)
    os.close(told)


def test_missing_programs_are_named_as_gaps(xfs_root: Path) -> None:
    enforcer = bpf(directory=ELSEWHERE, without=["file_ioctl", "remap"])
    assert enforcer.probe() == ""
    write(xfs_root / "sealed")
    with opened(xfs_root) as target:
        gaps: tuple[Gap, ...] = enforcer.gaps(target.filesystem, Kind.SHARED)
        assert {gap.risk for gap in gaps} == {"bpf-remap", "xfs-swapext", "loop-device"}
        assert enforcer.closes(target.filesystem, Kind.SHARED) == {
            "ext4-move-ext", "overlay-truncate",
        }  # fmt: skip
        hold = enforcer.hold(target, guard())
        assert in_child(lambda: os.ftruncate(target.fd, 0)) == ETXTBSY
        hold.release()
    enforcer.stop()
    without = bpf(directory=ELSEWHERE, without=["file_permission"])
    assert "file_permission" in without.probe()
    assert not without.directory.exists()


def test_nothing_is_missing_on_this_kernel(enforcer: BpfEnforcer) -> None:
    assert enforcer.missing == {}
