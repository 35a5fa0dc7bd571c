"""One boot of a kernel in QEMU, to run one command."""

from __future__ import annotations

import compileall
import ctypes
import fcntl
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.lab import kernels
from tests.lab.kernels import DEFAULT, Kernel
from tests.lab.ports import Ports, Sink
from tests.lab.qemu import MACHINE, Machine, command_line

_HERE = Path(__file__).parent
ROOT = _HERE.parents[1]
SHARE = "/run/lab-share"
BOOT_TIMEOUT = 300.0  # some 3 s when nothing else runs
_BOOTS = 2  # QEMU 7.2 was seen to fail once in some dozens of boots
_PREFIX = "sealsvc-guest-"
_PR_SET_PDEATHSIG = 1


class LabError(Exception):
    """The guest did not boot, or did not live to the command's end. The text has its console."""


class _BootFailed(LabError):
    """Before the command was started, so it may be tried again."""


@dataclass(frozen=True)
class Completed:
    status: int
    stdout: str
    stderr: str
    boot_seconds: float


def run(
    argv: Sequence[str],
    kernel: str = DEFAULT,
    *,
    timeout: float = 600.0,
    machine: Machine = MACHINE,
    share: Path | None = None,
    environment: Mapping[str, str] | None = None,
    echo: bool = False,
) -> Completed:
    """Run `argv` in a fresh guest, as root, in the repository's directory. Persistent memory
    stands at /dev/pmem0 and so on; `share` is a directory of the host that the guest may write,
    at $SEALSVC_LAB_SHARE. With `echo` the output goes to ours as it comes. Raises LabError when
    the guest does not boot, dies, or takes longer than `timeout` seconds, and
    kernels.Unavailable."""
    chosen = kernels.kernel(kernel)
    _compile()
    for boots_left in reversed(range(_BOOTS)):
        try:
            with _directory() as directory:
                guest = _Guest(chosen, machine, directory, share)
                guest.write_command(argv, environment or {})
                return guest.run(timeout, echo)
        except _BootFailed:
            if not boots_left:
                raise
    raise AssertionError("unreachable")


@cache
def _compile() -> None:
    """What each program in each guest would else compile anew, for ten seconds."""
    for package in ("sealsvc", "api", "tests"):
        compileall.compile_dir(ROOT / package, quiet=2)


class _Guest:
    """Its files are in `directory`."""

    def __init__(
        self, chosen: Kernel, machine: Machine, directory: Path, share: Path | None
    ) -> None:
        self._kernel, self._machine, self._directory = chosen, machine, directory
        self._share = share.resolve() if share else directory / "share"
        self._share.mkdir(exist_ok=True)
        self._mark = secrets.token_hex(16)

    def write_command(self, argv: Sequence[str], extra: Mapping[str, str]) -> None:
        """What `second`, the guest's second stage, reads and runs."""
        environment = {
            "PYTHONPATH": f"{ROOT}:{ROOT}/api",
            "SEALSVC_LAB": self._kernel.release,
            "SEALSVC_LAB_SHARE": SHARE,
            "DM_DISABLE_UDEV": "1",
            **extra,
        }
        settings = {
            "modules": str(self._kernel.modules.resolve()),
            "share": SHARE,
            "pmem": str(len(self._machine.pmem)),
            "mark": self._mark,
        }
        lab = self._directory / "lab"
        lab.mkdir()
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in environment.items())
        command = f"cd {shlex.quote(str(ROOT))} || exit\nexec {shlex.join(argv)}\n"
        (lab / "command").write_text(exports + command)
        (lab / "settings").write_text(
            "".join(f"{k}={shlex.quote(v)}\n" for k, v in settings.items())
        )
        (lab / "keep").write_text(f"{ROOT}\n{sys.prefix}\n{sys.base_prefix}\n")
        (lab / "second").write_bytes((_HERE / "second").read_bytes())

    def run(self, timeout: float, echo: bool) -> Completed:
        out, err = (_to(sys.stdout), _to(sys.stderr)) if echo else (None, None)
        mark = b"\1" + self._mark.encode()
        with closing(Ports(self._directory / "ports", mark, out, err)) as ports:
            arguments = command_line(self._machine, self._kernel, self._directory, self._share)
            with _qemu(arguments, self._directory / "qemu"):
                status, booted = self._attend(ports, timeout)
        return Completed(status, ports.out.text, ports.err.text, booted)

    def _attend(self, ports: Ports, timeout: float) -> tuple[int, float]:
        """Follow the guest to the command's end: its status, and the seconds that the boot took."""
        began, booted = time.monotonic(), 0.0
        limit = began + BOOT_TIMEOUT
        while (status := ports.status) is None:
            alive = ports.read(min(1.0, limit - time.monotonic()))
            if not booted and ports.ready:
                booted = time.monotonic() - began
                limit = time.monotonic() + timeout
            if not alive and ports.status is None:
                raise self._error("the guest died", booted)
            if time.monotonic() >= limit:
                late = f"the command took longer than {timeout:g} s"
                raise self._error(late if booted else "the guest did not boot", booted)
        return status, booted

    def _error(self, what: str, booted: float) -> LabError:
        """`what`, and the end of what the guest's console and QEMU said."""
        parts = [what]
        for name in ("console", "qemu"):
            with suppress(FileNotFoundError):
                lines = (self._directory / name).read_text(errors="replace").splitlines()
                parts += [f"-- the end of {name}:", *lines[-60:]] if lines else []
        return (LabError if booted else _BootFailed)("\n".join(parts))


@contextmanager
def _qemu(arguments: Sequence[str], log: Path) -> Iterator[None]:
    """QEMU runs while the context lasts, and no longer than this thread."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=_die_with_us
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _to(stream: object) -> Sink:
    def show(data: bytes) -> None:
        stream.buffer.write(data)  # type: ignore[attr-defined]
        stream.flush()  # type: ignore[attr-defined]

    return show


@contextmanager
def _directory() -> Iterator[Path]:
    """A new directory, locked while it is used: so the next run finds what a killed one left."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def _sweep() -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(descriptor).st_mtime > 60:  # else it is being made
                    shutil.rmtree(left)
            finally:
                os.close(descriptor)
