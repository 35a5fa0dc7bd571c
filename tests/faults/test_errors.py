"""The kernel says no: each call of a grant and of a return fails in its turn, in strace's hands."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import TABLE, Refusal
from sealsvc.protocol.seals import List, Return, Show
from sealsvc.runtime import faults
from tests.faults.conftest import PUNCH, Intrude, granted, nothing_is_left, serve
from tests.support.service import Running
from tests.support.waiting import PATIENCE, until

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(shutil.which("strace") is None, reason="there is no strace"),
]

PREPARED = {"prepare": ["allocate", "convert", "unshare"]}
PUBLISHED = {"grant:journalled", "grant:published", "grant:answered"}

# Calls of the service, with whether only those on the file are meant, and of the keeper.
SERVICE = [
    ("fsync", "EIO", True),
    ("fsync", "ENOSPC", True),
    ("ioctl", "EIO", True),  # the geometry, the generation, and each FIEMAP
    ("ioctl", "ENOMEM", True),
    ("fallocate", "ENOSPC", True),
    ("fallocate", "EIO", True),
    ("fcntl", "ENOLCK", True),
    ("fcntl", "EMFILE", False),
    ("newfstatat", "EIO", True),
    ("fstatfs", "EIO", True),
    ("openat", "EMFILE", False),
    ("openat2", "ENFILE", False),
    ("openat2", "ENOMEM", False),
]
KEEPER = [
    ("fanotify_mark", "ENOSPC", False),
    ("fanotify_mark", "ENOMEM", False),
]


class Injection:
    """strace on a process: some of its calls fail. `done` once it has let go."""

    def __init__(self, pid: int, what: str, out: Path, path: Path | None) -> None:
        self.out = out
        name = what.split(":")[0]
        of = ["-P", str(path)] if path else []
        self.process = subprocess.Popen(
            [
                *("strace", "-f", "-p", str(pid), "-o", out, *of),
                *(f"--trace={name}", f"--inject={what}"),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        said = self.process.stderr.readline()
        assert "attached" in said, said

    def done(self) -> int:
        """How many calls failed."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr
        self.process.stderr.close()
        self.process.wait(PATIENCE)
        return self.out.read_text().count("(INJECTED)")


@contextmanager
def injecting(
    running: Running, what: str, *, path: Path | None = None, keeper: bool = False
) -> Iterator[list[int]]:
    """`what` as strace's inject wants it; the value gets the number of calls that failed."""
    assert running.process is not None
    pid = running.keeper() if keeper else running.process.pid
    failed: list[int] = []
    injection = Injection(pid, what, running.directory / "strace", path)
    try:
        yield failed
    finally:
        failed.append(injection.done())


def code_of(call: object, *arguments: object, **fields: object) -> str:
    """How it ends: `ok`, or the code of its refusal, which is a documented one."""
    try:
        call(*arguments, **fields)  # type: ignore[operator]
        code, message = "ok", ""
    except Refusal as refusal:
        code, message = refusal.code, refusal.message
    assert code in TABLE or code == "ok"
    assert code != "internal", message
    return code


def punch(file: Path) -> None:
    """Another process's, that waits for every guard on the range."""
    command = ["fallocate", "--punch-hole", "--offset", "65536", "--length", "196608", file]
    subprocess.run(command, check=True, timeout=PATIENCE)


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    """The service has one worker, whose calls strace can count."""
    config = running.config.read_text()
    running.config.write_text(config.replace("[service]", "[service]\nworkers = 1"))
    serve(running)
    running.ready()
    with Client(str(running.socket), timeout=PATIENCE) as made:
        yield made


def each_time(
    running: Running, file: Path, client: Client, call: str, error: str, *, only: bool, keeper: bool
) -> dict[str, int]:
    """Have the first such call of a grant fail, then the second, and so on. The codes it got."""
    codes: dict[str, int] = {}
    for count in itertools.count(1):
        what = f"{call}:error={error}:when={count}"
        seals: list[str] = []
        path = file if only else None
        with injecting(running, what, path=path, keeper=keeper) as failed:
            code = code_of(lambda seals=seals: seals.append(granted(client, file, **PREPARED)))
        for seal in seals:
            assert client.call(Show, seal=seal).seal.state == "granted"
            client.call(Return, seal=seal)
        if not failed[0]:
            assert code == "ok"
            return codes
        codes[code] = codes.get(code, 0) + 1
        assert client.call(List).result.seals == []
        punch(file)  # nothing is left armed
        client.call(Return, seal=granted(client, file, **PREPARED))
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("call", "error", "only", "keeper"),
    [(*row, False) for row in SERVICE] + [(*row, True) for row in KEEPER],
)
def test_each_call_of_a_grant_fails(
    running: Running,
    client: Client,
    file: Path,
    intrude: Intrude,
    call: str,
    error: str,
    only: bool,
    keeper: bool,
) -> None:
    codes = each_time(running, file, client, call, error, only=only, keeper=keeper)
    print(codes)
    assert codes, f"no {call} was seen"
    nothing_is_left(running, file, intrude)


@pytest.mark.parametrize(
    ("call", "error", "only"), [("bpf", "ENOMEM", False), ("bpf", "EPERM", False)]
)
def test_each_call_of_a_return_fails(
    running: Running,
    client: Client,
    file: Path,
    intrude: Intrude,
    call: str,
    error: str,
    only: bool,
) -> None:
    """The seal is over, or it is as it was and can be returned again."""
    other = os.open(file, os.O_RDONLY)  # so that the proof has to look at processes
    codes: dict[str, int] = {}
    for count in itertools.count(1):
        seal = granted(client, file)
        what = f"{call}:error={error}:when={count}"
        with injecting(running, what, path=file if only else None) as failed:
            code = code_of(lambda seal=seal: client.call(Return, seal=seal))
        if code != "ok":
            assert client.call(Show, seal=seal).seal.state == "granted"
            client.call(Return, seal=seal)
        assert client.call(List).result.seals == []
        punch(file)
        client.call(Return, seal=granted(client, file, **PREPARED))
        if not failed[0]:
            break
        codes[code] = codes.get(code, 0) + 1
    os.close(other)
    print(codes)
    assert codes, f"no {call} was seen"
    nothing_is_left(running, file, intrude)


@pytest.mark.parametrize("error", ["ENOSPC", "ENOMEM", "EMFILE", "EIO"])
def test_a_grant_that_cannot_be_recorded(
    running: Running, file: Path, intrude: Intrude, error: str
) -> None:
    serve(running, f"grant:recording=errno:{error}@1")
    running.ready()
    with Client(str(running.socket), timeout=PATIENCE) as client:
        assert code_of(granted, client, file) == "io-error"
        assert client.call(List).result.seals == []
        punch(file)
        client.call(Return, seal=granted(client, file, **PREPARED))
    nothing_is_left(running, file, intrude)


def test_any_step_of_a_grant_fails(running: Running, file: Path, intrude: Intrude) -> None:
    for point in (name for name in faults.POINTS if name.startswith("grant:")):
        if point in PUBLISHED:
            continue
        serve(running, f"{point}=errno:ENOMEM@1")
        running.ready()
        with Client(str(running.socket), timeout=PATIENCE) as client:
            assert code_of(granted, client, file) == "io-error", point
            assert client.call(List).result.seals == []
            punch(file)
            client.call(Return, seal=granted(client, file, **PREPARED))
        nothing_is_left(running, file, intrude)


def test_an_end_that_cannot_be_recorded(running: Running, file: Path, intrude: Intrude) -> None:
    """The seal is as it was, and can be returned once there is memory again."""
    serve(running, "step:recording=errno:ENOMEM@1")
    running.ready()
    with Client(str(running.socket), timeout=PATIENCE) as client:
        seal = granted(client, file)
        assert code_of(lambda: client.call(Return, seal=seal)) == "io-error"
        assert client.call(Show, seal=seal).seal.state == "granted"
        client.call(Return, seal=seal)
    nothing_is_left(running, file, intrude)


@pytest.mark.parametrize("which", [1, 2], ids=["probe", "journal"])
def test_no_journal_no_service(running: Running, file: Path, intrude: Intrude, which: int) -> None:
    """It says why, and ends: what was sealed stays so, for the next one."""
    serve(running)
    running.ready()
    with Client(str(running.socket)) as client:
        seal = granted(client, file, conflict="refuse")
    running.kill()
    strace = ["strace", "-f", "-o", str(running.directory / "strace")]
    strace += ["-e", "trace=memfd_create", "-e", f"inject=memfd_create:error=EMFILE:when={which}"]
    serving = [sys.executable, "-m", "sealsvc.cli.service", "serve", "--config", running.config]
    done = subprocess.run(
        [*strace, *serving], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr, done.stderr
    assert "Too many open files" in done.stderr
    assert intrude(PUNCH).wait(PATIENCE) == 26  # ETXTBSY
    serve(running)
    running.ready()
    with Client(str(running.socket)) as client:
        client.call(Return, seal=seal)
    nothing_is_left(running, file, intrude)


@pytest.mark.slow
def test_a_journal_that_cannot_be_rewritten_goes_on(
    running: Running, client: Client, file: Path, intrude: Intrude
) -> None:
    """Housekeeping does not end with it: what has lapsed is noticed."""
    with injecting(running, "memfd_create:error=EMFILE:when=1") as failed:
        for _ in range(4000):
            client.call(Return, seal=granted(client, file, tag="x" * 256))
            if "INJECTED" in (running.directory / "strace").read_text():
                break
    assert failed[0] == 1, "the journal was never rewritten"
    seal = granted(client, file, ttl=0.1)
    until(lambda: client.call(Show, seal=seal).seal.state == "courtesy")
    nothing_is_left(running, file, intrude)


def test_a_journal_that_cannot_grow(
    running: Running, client: Client, file: Path, intrude: Intrude
) -> None:
    """Its first MiB is soon full of a map of tens of thousands of extents."""
    scattered = scatter(file.with_name("scattered"), 40_000)
    try:
        whole = {"offset": 0, "length": scattered.stat().st_size}
        with injecting(running, "ftruncate:error=ENOSPC:when=1") as failed:
            assert code_of(granted, client, scattered, **whole) == "io-error"
        assert failed[0] == 1
        assert client.call(List).result.seals == []
        client.call(Return, seal=granted(client, scattered, **whole))
    finally:
        scattered.unlink()
    nothing_is_left(running, file, intrude)


def scatter(path: Path, count: int) -> Path:
    """A file of `count` extents of a block: its neighbours on the device go to another."""
    other = path.with_name("between")
    with path.open("wb") as file, other.open("wb") as between:
        for block in range(count):
            os.posix_fallocate(file.fileno(), block * 4096, 4096)
            os.posix_fallocate(between.fileno(), block * 4096, 4096)
        file.write(bytes(count * 4096))
        file.flush()
        os.fsync(file.fileno())
    other.unlink()
    return path
