"""What happens around a sealed file: docs/environment.md, row by row."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from sealsvc.client import Client, Reply
from sealsvc.doctor import syscalls
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.seals import Grant, List, Recall, Return, SealInfo
from sealsvc.protocol.system import Audit, AuditReport, Status
from tests.service.test_seal_ends import punch, state
from tests.support.refusals import refusal
from tests.support.scratch import mounted
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel
MiB = 1 << 20

AUDIT_INTERVAL = "audit_interval = 0.2\n"
GOING_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
NO_LOG_FLUSH = 2
MKFS = {"xfs": ["-m", "reflink=1"], "ext4": []}


def give_back(client: Client, seal: str) -> None:
    assert client.call(Return, seal=seal).seal.state == "returned"


def sealed(client: Client, file: Path, **fields: object) -> SealInfo:
    """A shared seal whose descriptor is closed, so that only the service has the file open."""
    reply: Reply = client.grant(path=str(file), **({"kind": "shared", "grace": 200} | fields))
    for fd in reply.fds:
        os.close(fd)
    return reply.seal


def unharmed(client: Client, seal: str) -> None:
    """It stands, its map is the recorded one, and it can be given back."""
    report = client.call(Audit, seal=seal).result
    assert isinstance(report, AuditReport)
    assert (report.checked, report.drifted, report.unreadable) == (1, [], [])
    assert state(client, seal) == "granted"
    give_back(client, seal)


def alarms(socket: str, seal: str | None = None) -> list[str]:
    """All that there were about the seal; without one, those that are about none. Without what a
    busy machine does to the service's event loop, and what others mount in their chroots."""
    with Client(socket, timeout=PATIENCE) as client:
        client.call(Watch, since=0)
        client.call(Status)
        found = [p for p in client.pushes(0) if isinstance(p, Event) and p.name == "alarm"]
        told = [event.data["reason"] for event in found if event.seal == seal]
        apart = ("the event loop did nothing", "the mounts of the mount namespace of process")
        return [reason for reason in told if not reason.startswith(apart)]


def deaths(socket: str) -> list[str]:
    """Alarms that are of a whole file system; each seal that is lost has one of its own."""
    return [told for told in alarms(socket) if "is shut down or its device is gone" in told]


def other_alarms(socket: str) -> list[str]:
    """All but those that tell what the kernel reports itself (FAN_FS_ERROR). It reports an error
    only if the file system was marked before, which happens beside the grant."""
    return [told for told in alarms(socket) if "reports an error of its metadata" not in told]


def make(path: Path, size: int = MiB) -> Path:
    with path.open("wb") as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
    return path


def free_blocks(point: Path) -> int:
    os.sync()
    return os.statvfs(point).f_bfree


class Scene:
    """A file system of its own, and a daemon that serves it."""

    def __init__(self, point: Path, running: Running) -> None:
        self.point, self.running = point, running
        self.socket = str(running.socket)

    @property
    def type(self) -> str:
        return mount_line(self.point).split(" - ")[1].split()[0]


def mount_line(point: Path) -> str:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return next((line for line in lines if line.split()[4] == str(point)), "")


@contextmanager
def scenery(fstype: str, directory: Path, *more: Path, size: int = 512 * MiB) -> Iterator[Scene]:
    with mounted(fstype, size, MKFS[fstype]) as point:
        running = Running(directory, [point, *more], RISKS, AUDIT_INTERVAL)
        running.start()
        try:
            running.ready()
            yield Scene(point, running)
        finally:
            running.end()


@pytest.fixture(params=["xfs", "ext4"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    with scenery(request.param, tmp_path) as made:
        yield made


@contextmanager
def frozen(point: Path) -> Iterator[Callable[[], None]]:
    """The value thaws it before the end."""
    fd = os.open(point, os.O_RDONLY)

    def thaw() -> None:
        with suppress(OSError):  # EINVAL: it is thawed
            syscalls.thaw(fd)

    try:
        syscalls.freeze(fd)
        yield thaw
    finally:
        thaw()
        os.close(fd)


def shut_down(point: Path) -> None:
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, GOING_DOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(fd)


# Names


def test_unlink_is_let_through_and_frees_nothing_before_the_return(scene: Scene) -> None:
    file = make(scene.point / "file", 64 * MiB)
    with Client(scene.socket, timeout=PATIENCE) as client:
        seal = sealed(client, file)
        before = free_blocks(scene.point)
        file.unlink()
        assert free_blocks(scene.point) - before < 64 * MiB // 4096
        report = client.call(Audit, seal=seal.id).result
        assert (report.checked, report.drifted, report.unreadable) == (1, [], [])
        assert client.call(List).result.seals[0].path == str(file)
        give_back(client, seal.id)
        until(lambda: free_blocks(scene.point) - before >= 64 * MiB // 4096)


def test_a_seal_follows_its_file_through_a_rename(client: Client, file: Path) -> None:
    seal = sealed(client, file)
    moved = file.rename(file.with_suffix(".moved"))
    make(file)  # another file by the name that was sealed
    try:
        assert punch(file).wait(PATIENCE) == 0
        assert client.call(List).result.seals[0].path == str(file)
        intruder = punch(moved)
        recall = next(client.pushes(PATIENCE))
        assert isinstance(recall, Recall)
        assert recall.seal == seal.id
        assert intruder.poll() is None
        give_back(client, seal.id)
        assert intruder.wait(PATIENCE) == 0
    finally:
        moved.unlink()


def test_a_seal_is_met_by_a_hard_link(client: Client, file: Path) -> None:
    seal = sealed(client, file, conflict="refuse")
    other = file.with_suffix(".link")
    other.hardlink_to(file)
    try:
        assert punch(other).wait(PATIENCE) != 0
        with other.open("r+b") as opened, pytest.raises(OSError, match="Text file busy") as caught:
            os.truncate(opened.fileno(), 4096)
        assert caught.value.errno == errno.ETXTBSY
        file.unlink()
        assert punch(other).wait(PATIENCE) != 0
        unharmed(client, seal.id)
        assert punch(other).wait(PATIENCE) == 0
    finally:
        other.unlink()


# Attributes

HARMLESS = {
    "chattr +i": lambda path: chattr(path, "i"),
    "chattr +a": lambda path: chattr(path, "a"),
    "chmod": lambda path: path.chmod(0o400),
    "chown": lambda path: os.chown(path, 1234, 1234),
    "utimes": lambda path: os.utime(path, (1, 1)),
    "xattrs": lambda path: os.setxattr(path, "user.note", bytes(2000)),
}


def chattr(path: Path, flag: str) -> None:
    subprocess.run(["chattr", f"+{flag}", path], check=True)


@pytest.mark.parametrize("change", HARMLESS)
def test_attributes_may_change(client: Client, file: Path, change: str) -> None:
    seal = sealed(client, file)
    before = file.stat().st_ctime_ns
    try:
        HARMLESS[change](file)
        assert file.stat().st_ctime_ns != before
        unharmed(client, seal.id)
        assert client.call(List).result.seals == []
    finally:
        subprocess.run(["chattr", "-ia", file], check=True)


XFLAGS = {"extsize": "extsize 2m", "DAX": "chattr +x"}


@pytest.mark.parametrize("hint", XFLAGS)
def test_xfs_hints_may_change(client: Client, file: Path, root: Path, hint: str) -> None:
    if "xfs" not in str(root):
        pytest.skip("of XFS alone")
    seal = sealed(client, file)
    before = lsattr(file)
    done = subprocess.run(
        ["xfs_io", "-x", "-c", XFLAGS[hint], file], capture_output=True, text=True, check=False
    )
    # An extent size hint is for empty files alone: nothing changes then.
    assert (lsattr(file) != before) == (hint == "DAX"), done
    unharmed(client, seal.id)


def lsattr(path: Path) -> str:
    command = ["xfs_io", "-c", "lsattr", "-c", "extsize", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# A frozen file system


def stuck(running: Running) -> int:
    """Threads of the service that wait for a thaw."""
    assert running.process is not None
    waiting = 0
    for task in Path(f"/proc/{running.process.pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it has ended
            waiting += (task / "wchan").read_text() == "percpu_rwsem_wait"
    return waiting


ALLOCATE = {"kind": "shared", "prepare": ["allocate", "convert"]}


def make_sparse(path: Path) -> Path:
    """With a hole: to allocate its blocks, a frozen file system must thaw."""
    make(path, 65536)
    os.truncate(path, 131072)
    return path


@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_a_frozen_file_system_starves_only_itself(
    fstype: str, tmp_path: Path, ext4: Path, file_elsewhere: Path
) -> None:
    with scenery(fstype, tmp_path, ext4) as scene, ExitStack() as stack:
        files = [make_sparse(scene.point / f"file-{number}") for number in range(20)]
        old = make(scene.point / "old", 65536)
        client = stack.enter_context(Client(scene.socket, timeout=PATIENCE))
        crowd = stack.enter_context(Client(scene.socket, timeout=PATIENCE))
        before = sealed(client, old)
        thaw = stack.enter_context(frozen(scene.point))
        requests = [crowd.send(Grant, path=str(file), **ALLOCATE) for file in files]
        until(lambda: stuck(scene.running) == 8)

        # Others are served, and what is asked without the file system itself.
        elsewhere = sealed(client, file_elsewhere)
        assert client.call(Status).result.seals == {"granted": 2}
        assert len(client.call(List).result.seals) == 2
        give_back(client, before.id)
        report = client.call(Audit).result
        assert (report.checked, report.unreadable) == (1, [])
        move_blocks(file_elsewhere)
        until(lambda: state(client, elsewhere.id) == "lost")  # by the periodic audit
        give_back(client, elsewhere.id)
        assert stuck(scene.running) == 8

        thaw()
        assert len(requests) == 20
        until(lambda: client.call(Status).result.seals == {"granted": 20})
        for seal in client.call(List).result.seals:
            assert seal.path in map(str, files)
            give_back(client, seal.id)
        assert all(elsewhere.id in told for told in alarms(scene.socket))


@pytest.fixture
def file_elsewhere(ext4: Path) -> Iterator[Path]:
    made = make(ext4 / f"elsewhere-{os.getpid()}")
    yield made
    made.unlink(missing_ok=True)


def move_blocks(file: Path) -> None:
    """Of ext4, as e4defrag does: no event tells of it."""
    donor = make(file.with_suffix(".donor"), file.stat().st_size)
    with file.open("r+b") as a, donor.open("r+b") as b:
        syscalls.move_extents(a.fileno(), b.fileno(), 0, 65536)
    donor.unlink()


def test_grants_that_need_no_block_are_made_on_a_frozen_file_system(tmp_path: Path) -> None:
    with scenery("ext4", tmp_path) as scene, Client(scene.socket, timeout=PATIENCE) as client:
        file = make(scene.point / "file")
        with frozen(scene.point):
            unharmed(client, sealed(client, file).id)


def test_a_conflict_on_a_frozen_file_system_waits_for_the_seal_first(scene: Scene) -> None:
    file = make(scene.point / "file")
    with Client(scene.socket, timeout=PATIENCE) as client:
        seal = sealed(client, file)
        with frozen(scene.point):
            intruder = punch(file)
            recall = next(client.pushes(PATIENCE))
            assert isinstance(recall, Recall)
            give_back(client, seal.id)
            until(lambda: wchan(intruder.pid) == "percpu_rwsem_wait")
        assert intruder.wait(PATIENCE) == 0


def wchan(pid: int) -> str:
    return Path(f"/proc/{pid}/wchan").read_text()


def test_a_grant_that_hangs_can_be_given_up(scene: Scene) -> None:
    file = make_sparse(scene.point / "file")
    with frozen(scene.point), Client(scene.socket, timeout=PATIENCE) as client:
        client.send(Grant, path=str(file), **ALLOCATE)
        until(lambda: stuck(scene.running) == 1)
    # Thawed: nothing is left of it.
    with Client(scene.socket, timeout=PATIENCE) as client:
        unharmed(client, sealed(client, file, kind="exclusive", length=65536).id)


def test_the_service_is_restarted_while_a_grant_hangs(scene: Scene) -> None:
    file, old = make_sparse(scene.point / "file"), make(scene.point / "old")
    with Client(scene.socket, timeout=PATIENCE) as client:
        before = sealed(client, old)
    first = scene.running.process
    assert first is not None
    with frozen(scene.point), Client(scene.socket, timeout=PATIENCE) as client:
        client.send(Grant, path=str(file), **ALLOCATE)
        until(lambda: stuck(scene.running) == 1)
        first.send_signal(signal.SIGTERM)
        until(lambda: "stay enforced" in scene.running.log.read_text())
        scene.running.start()
        scene.running.ready()
        with Client(scene.socket, timeout=PATIENCE) as second:
            assert state(second, before.id) == "granted"
            assert first.poll() is None, "it cannot end before its thread does"
            give_back(second, before.id)
    assert first.wait(PATIENCE) == 0
    with Client(scene.socket, timeout=PATIENCE) as client:
        unharmed(client, sealed(client, file, kind="exclusive", length=65536).id)


# A file system that becomes read-only, or is unmounted


def mount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


def umount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["umount", *arguments], capture_output=True, text=True, check=False)


def test_remounted_read_only(scene: Scene) -> None:
    file = make(scene.point / "file")
    with Client(scene.socket, timeout=PATIENCE) as client:
        reply = client.grant(path=str(file), kind="shared")
        # The kernel itself refuses while the holder has it open for writing.
        assert "busy" in mount("-o", "remount,ro", scene.point).stderr
        os.close(reply.fds[0])
        # A copy of the descriptor that somebody looked at may live for a moment.
        until(lambda: mount("-o", "remount,ro", scene.point).returncode == 0)
        refused = refusal(lambda: client.grant(path=str(file), kind="shared"))
        assert (refused.code, refused.details["errno"]) == ("io-error", errno.EROFS)
        assert "iomode read" in refused.message
        reader = sealed(client, file, iomode="read")
        assert state(client, reply.seal.id) == "granted"
        unharmed(client, reply.seal.id)
        assert mount("-o", "remount,rw", scene.point).returncode == 0
        unharmed(client, reader.id)
        assert alarms(scene.socket) == []


def test_ext4_that_met_an_error_is_read_only(tmp_path: Path) -> None:
    with scenery("ext4", tmp_path) as scene, Client(scene.socket, timeout=PATIENCE) as client:
        assert mount("-o", "remount,errors=remount-ro", scene.point).returncode == 0
        file = make(scene.point / "file")
        seal = sealed(client, file)
        device = Path(mount_line(scene.point).split()[-2]).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("for a test")
        refused = refusal(lambda: client.grant(path=str(file), kind="shared"))
        assert (refused.code, refused.details["errno"]) == ("io-error", errno.EROFS)
        unharmed(client, seal.id)
        assert other_alarms(scene.socket) == []


def test_unmounted_at_once_after_a_recall_of_all(scene: Scene) -> None:
    files = [make(scene.point / f"file-{number}") for number in range(3)]
    holders = [Client(scene.socket, timeout=PATIENCE) for _ in files]
    for holder, file in zip(holders, files, strict=True):
        sealed(holder, file, kind="exclusive")
    assert "busy" in umount(scene.point).stderr
    command = ["recall", "--socket", scene.socket, "--filesystem", scene.point, "--wait"]
    recall = subprocess.Popen(
        [sys.executable, "-m", "sealsvc.cli.sealctl", *command], stdout=subprocess.DEVNULL
    )
    for holder in holders:
        told = next(holder.pushes(PATIENCE))
        assert isinstance(told, Recall)
        assert recall.poll() is None
        give_back(holder, told.seal)
        holder.close()
    assert recall.wait(PATIENCE) == 0
    # Once, and without a pause.
    assert umount(scene.point).stderr == ""
    assert alarms(scene.socket) == []
    mount("-o", "loop", scene.point.parent / "image", scene.point)


def test_unmounted_lazily(scene: Scene) -> None:
    file = make(scene.point / "file")
    with Client(scene.socket, timeout=PATIENCE) as client, file.open("r+b") as intruder:
        seal = sealed(client, file, conflict="refuse")
        device = file.stat().st_dev
        assert umount("--lazy", scene.point).returncode == 0
        until(lambda: alarms(scene.socket) != [])
        assert mount("-t", "tmpfs", "none", scene.point).returncode == 0  # mounts change again
        try:
            with pytest.raises(OSError, match="Text file busy") as caught:
                os.truncate(intruder.fileno(), 0)
            assert caught.value.errno == errno.ETXTBSY
            assert device_in_use(scene.point)
            [told] = alarms(scene.socket)
            assert str(scene.point) in told
            assert "was unmounted" in told
            assert client.call(List).result.seals[0].file.device == device
            unharmed(client, seal.id)
        finally:
            umount(scene.point)
    until(lambda: not device_in_use(scene.point))
    mount("-o", "loop", scene.point.parent / "image", scene.point)


def device_in_use(point: Path) -> bool:
    """The loop device goes with its last user."""
    backing = [p.read_text().strip() for p in Path("/sys/block").glob("loop*/loop/backing_file")]
    return str(point.parent / "image") in backing


# A file system that is shut down


def test_shut_down(scene: Scene) -> None:
    never, *files = [make(scene.point / f"file-{number}") for number in range(4)]
    with Client(scene.socket, timeout=PATIENCE) as client, ExitStack() as stack:
        found = [sealed(client, file) for file in files]
        intruder = os.open(files[0], os.O_RDWR)
        stack.callback(close, intruder)
        shut_down(scene.point)
        for seal in found:
            until(lambda seal=seal: state(client, seal.id) == "lost")
        for info in client.call(List).result.seals:
            assert "cannot be read any more" in info.reason
        [told] = deaths(scene.socket)
        assert str(scene.point) in told
        assert "3 seals are lost" in told
        # Of a watched file the kernel cannot ask the gate any more, and refuses by itself.
        for file, name in ((files[0], errno.EPERM), (never, errno.EIO)):
            refused = refusal(lambda file=file: client.grant(path=str(file), kind="shared"))
            assert (refused.code, refused.details["errno"]) == ("io-error", name)
            assert "shut down" in refused.message
        with pytest.raises(OSError, match="Operation not permitted"):
            os.pread(intruder, 10, 0)
        for seal in found:
            give_back(client, seal.id)
        # Audits went on, and nothing was told twice.
        before = len(events(scene.socket))
        assert client.call(Audit).result.unreadable == []
        assert len(events(scene.socket)) == before
        assert len(deaths(scene.socket)) == 1


def close(fd: int) -> None:
    with suppress(OSError):  # EIO, but closed
        os.close(fd)


def events(socket: str) -> list[str]:
    with Client(socket, timeout=PATIENCE) as client:
        client.call(Watch, since=0)
        client.call(Status)
        return [push.name for push in client.pushes(0) if isinstance(push, Event)]


def test_the_service_is_restarted_on_a_file_system_that_is_shut_down(scene: Scene) -> None:
    file, free = make(scene.point / "file"), make(scene.point / "free")
    with Client(scene.socket, timeout=PATIENCE) as client:
        seal = sealed(client, file)
        give_back(client, sealed(client, free).id)
    scene.running.kill()
    shut_down(scene.point)
    scene.running.start()
    scene.running.ready()
    with Client(scene.socket, timeout=PATIENCE) as client:
        until(lambda: state(client, seal.id) == "lost")
        assert len(deaths(scene.socket)) == 1
        give_back(client, seal.id)
        until(lambda: umount(scene.point).returncode == 0)
    mount("-o", "loop", scene.point.parent / "image", scene.point)


# A disk that is full


@pytest.mark.parametrize("fstype", ["xfs", "ext4"])
def test_no_room_to_prepare(fstype: str, tmp_path: Path) -> None:
    with scenery(fstype, tmp_path) as scene, Client(scene.socket, timeout=PATIENCE) as client:
        file = scene.point / "file"
        with file.open("wb") as sparse:
            sparse.truncate(1024 * MiB)
        free = os.statvfs(scene.point).f_bfree
        refused = refusal(lambda: client.grant(path=str(file), **ALLOCATE))
        assert refused.code == "io-error"
        assert refused.details["call"] == "fallocate"
        assert refused.details["errno"] == errno.ENOSPC
        assert "free some" in refused.message
        # The file is as it was, and nothing of what ext4 reserves for root was used.
        assert (file.stat().st_blocks, os.statvfs(scene.point).f_bfree) == (0, free)
        # Nothing is armed: a conflict passes, and whoever asks for less gets it.
        assert punch(file).wait(PATIENCE) == 0
        assert client.call(List).result.seals == []
        options = {"kind": "exclusive", "prepare": ["allocate", "convert"], "length": MiB}
        os.truncate(file, MiB)
        unharmed(client, sealed(client, file, **options).id)
