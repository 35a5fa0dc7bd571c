"""One boot of a kernel in QEMU, to run one command."""

from __future__ import annotations

import ctypes
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.initramfs import initramfs
from tests.lab.kernels import DEFAULT, Kernel, kernel

MiB = 1 << 20
_HERE = Path(__file__).parent
ROOT = _HERE.parents[1]
SHARE = "/run/lab-share"
BOOT_TIMEOUT = 90.0
_BOOTS = 2  # QEMU was seen to fail once in some dozens of boots

_COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr lsm=bpf rcupdate.rcu_expedited=1"
    " tsc=reliable cryptomgr.notests random.trust_cpu=on"
)


class LabError(Exception):
    """The guest did not boot, or did not live to the command's end. The text has its console."""


@dataclass(frozen=True)
class Completed:
    status: int
    stdout: str
    stderr: str
    boot_seconds: float


@dataclass
class _Channels:
    """What the guest writes, by port."""

    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    control: bytearray = field(default_factory=bytearray)


class _BootFailed(LabError):
    pass


def run(
    argv: Sequence[str],
    series: str = DEFAULT,
    *,
    timeout: float = 600.0,
    cpus: int = 1,
    memory: int = 3072 * MiB,
    pmem: int = 1024 * MiB,
    share: Path | None = None,
    environment: dict[str, str] | None = None,
    echo: bool = False,
) -> Completed:
    """Run `argv` in a fresh guest, as root, in the repository's directory. `pmem` bytes of
    persistent memory stand at /dev/pmem0 (0: none); `share` is a directory of the host that the
    guest may write, at $SEALSVC_LAB_SHARE. With `echo` the output goes to ours as it comes. Raises
    LabError when the guest does not boot, dies, or takes longer than `timeout` seconds."""
    chosen = kernel(series)
    for boots_left in reversed(range(_BOOTS)):
        try:
            with tempfile.TemporaryDirectory(prefix="sealsvc-lab-") as directory:
                guest = _Guest(chosen, Path(directory), share)
                guest.write_command(argv, environment or {}, pmem)
                return guest.run(timeout, cpus, memory, pmem, echo)
        except _BootFailed:
            if not boots_left:
                raise
    raise AssertionError("unreachable")


class _Guest:
    def __init__(self, chosen: Kernel, directory: Path, share: Path | None) -> None:
        self.kernel, self.directory = chosen, directory
        self.lab = directory / "lab"
        self.lab.mkdir()
        self.share = share or directory / "share"
        self.share.mkdir(exist_ok=True)
        self.console = directory / "console"

    def write_command(self, argv: Sequence[str], extra: dict[str, str], pmem: int) -> None:
        environment = {
            "PYTHONPATH": str(ROOT),
            "SEALSVC_LAB": self.kernel.release,
            "SEALSVC_LAB_SHARE": SHARE,
            "DM_DISABLE_UDEV": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **extra,
        }
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in environment.items())
        (self.lab / "command").write_text(
            f"{exports}cd {shlex.quote(str(ROOT))}\nexec {shlex.join(argv)}\n"
        )
        (self.lab / "settings").write_text(
            f"modules={shlex.quote(str(self.kernel.modules))}\nshare={SHARE}\n"
            f"pmem={int(pmem > 0)}\n"
        )
        (self.lab / "second").write_bytes((_HERE / "second").read_bytes())

    def run(self, timeout: float, cpus: int, memory: int, pmem: int, echo: bool) -> Completed:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.directory / "ports"))
        listener.listen(3)
        command = self._command(cpus, memory, pmem)
        log = (self.directory / "qemu").open("w+")
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=_die_with_parent
        )
        ports: dict[socket.socket, str] = {}
        try:
            self._accept(listener, process, ports)
            return self._attend(process, ports, began, timeout, echo)
        finally:
            process.kill()
            process.wait()
            for sock in (*ports, listener):
                sock.close()
            log.close()

    def _command(self, cpus: int, memory: int, pmem: int) -> list[str]:
        accelerator = os.environ.get("SEALSVC_LAB_ACCEL", "tcg,thread=multi")
        room = f"slots=2,maxmem={(memory + pmem) // MiB + 1024}M"
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none",
            "-accel", accelerator, "-cpu", "max", "-smp", str(cpus),
            "-machine", "q35,nvdimm=on", "-m", f"size={memory // MiB}M,{room}",
            "-kernel", str(self.kernel.vmlinux), "-initrd", str(initramfs(self.kernel)),
            "-append", _COMMAND_LINE, "-serial", f"file:{self.console}",
            "-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
        ]  # fmt: skip
        # The ports connect in the order in which they stand here.
        for name in ("out", "err", "control"):
            command += [
                "-chardev", f"socket,id={name},path={self.directory}/ports",
                "-device", f"virtserialport,chardev={name},name={name}",
            ]  # fmt: skip
        for tag, path, mode in (
            ("root", "/", "readonly=on,"),
            ("lab", self.lab, "readonly=on,"),
            ("share", self.share, ""),
        ):
            command += [
                "-virtfs",
                f"local,path={path},mount_tag={tag},security_model=none,{mode}multidevs=remap",
            ]
        if pmem:
            image = self.directory / "pmem"
            with image.open("xb") as file:
                file.truncate(pmem)
            command += [
                "-object",
                f"memory-backend-file,id=pmem,share=on,mem-path={image},size={pmem}",
                "-device", "nvdimm,memdev=pmem",
            ]  # fmt: skip
        return command

    def _accept(
        self,
        listener: socket.socket,
        process: subprocess.Popen[bytes],
        ports: dict[socket.socket, str],
    ) -> None:
        listener.settimeout(0.2)
        deadline = time.monotonic() + BOOT_TIMEOUT
        while len(ports) < 3:
            try:
                ports[listener.accept()[0]] = ("out", "err", "control")[len(ports)]
            except TimeoutError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise _BootFailed(self._story("QEMU did not start")) from None

    def _attend(
        self,
        process: subprocess.Popen[bytes],
        ports: dict[socket.socket, str],
        began: float,
        timeout: float,
        echo: bool,
    ) -> Completed:
        channels, booted = _Channels(), 0.0
        sinks: dict[str, Callable[[bytes], object]] = {
            "out": sys.stdout.buffer.write, "err": sys.stderr.buffer.write,
        }  # fmt: skip
        with selectors.DefaultSelector() as selector:
            for sock in ports:
                selector.register(sock, selectors.EVENT_READ)
            while selector.get_map():
                limit = began + booted + timeout if booted else began + BOOT_TIMEOUT
                ready = selector.select(max(0.0, limit - time.monotonic()))
                if not ready:
                    raise (
                        LabError(self._story(f"the command took longer than {timeout:g} s"))
                        if booted
                        else _BootFailed(self._story("the guest did not boot"))
                    )
                for key, _ in ready:
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    data = sock.recv(1 << 16)
                    if not data:
                        selector.unregister(sock)
                        continue
                    name = ports[sock]
                    getattr(channels, name).extend(data)
                    if echo and name in sinks:
                        sinks[name](data)
                        (sys.stdout if name == "out" else sys.stderr).flush()
                if not booted and b"ready\n" in channels.control:
                    booted = time.monotonic() - began
        process.wait(30)
        words = channels.control.decode().split()
        if words[-2:-1] != ["exit"]:
            raise (LabError if booted else _BootFailed)(self._story("the guest died"))
        return Completed(
            int(words[-1]),
            channels.out.decode(errors="replace"),
            channels.err.decode(errors="replace"),
            booted,
        )

    def _story(self, what: str) -> str:
        """`what`, and the end of what the guest's console and QEMU said."""
        parts = [what]
        for name in ("console", "qemu"):
            path = self.directory / name
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            if lines:
                parts.append(f"-- the end of {name}:")
                parts += lines[-60:]
        return "\n".join(parts)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
