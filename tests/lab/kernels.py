"""Debian's kernels, found through apt, fetched once, and unpacked for the lab.

The suites are those that the configured mirror serves, whichever it is: its address is taken from
apt's own configuration. Signatures are checked by apt, against Debian's keyring.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

DEFAULT = "6.18"
SERIES = ("6.18", "6.12", "6.1")

# Where a series may be found: releases are served as long as they are supported, and backports
# bring newer kernels to them.
_SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky", "sid")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_TOOLS = ("qemu-system-x86_64", "busybox", "ndctl", "depmod", "cpio", "xz", "zstd", "dpkg-deb")

# Parts of the module tree that nothing in the lab needs.
_UNWANTED = (
    "sound", "drivers/gpu", "drivers/media", "drivers/net", "drivers/usb", "drivers/staging",
    "drivers/iio", "drivers/hid", "drivers/input", "drivers/platform", "drivers/hwmon",
    "drivers/bluetooth", "drivers/comedi", "drivers/i2c", "drivers/leds", "drivers/mfd",
    "drivers/pinctrl", "drivers/power", "drivers/regulator", "drivers/crypto", "drivers/edac",
    "drivers/isdn", "drivers/mtd", "drivers/video", "drivers/accel", "drivers/thunderbolt",
    "drivers/crypto", "drivers/char/tpm", "net/bluetooth", "net/mac80211", "net/wireless",
    "net/netfilter", "net/sched", "net/can",
)  # fmt: skip


class Unavailable(Exception):
    """The lab cannot be used here; the text says why."""


@dataclass(frozen=True)
class Kernel:
    """`vmlinux` is the bare ELF image (booted directly, which saves a second of decompression);
    `modules` is a directory to stand at /lib/modules."""

    release: str
    vmlinux: Path
    modules: Path


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "sealsvc", "lab")


@cache
def unavailable(series: str = DEFAULT) -> str | None:
    """Why the lab cannot boot a kernel of `series` here, or None when it can."""
    try:
        kernel(series)
    except Unavailable as reason:
        return str(reason)
    return None


@cache
def kernel(series: str = DEFAULT) -> Kernel:
    """The newest kernel of a series such as "6.12". Raises Unavailable."""
    missing = [tool for tool in _TOOLS if not shutil.which(tool, path=_path())]
    if missing:
        raise Unavailable(f"the lab needs {', '.join(missing)}: ./dev build installs them, as root")
    where = cache_directory() / series
    with _locked(cache_directory()):
        if found := _unpacked(where):
            return found
        try:
            return _install(series, where)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"no kernel {series}: {_told(error)}") from error


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _told(error: Exception) -> str:
    output = getattr(error, "stderr", None)
    return str(output).strip().splitlines()[-1] if output else str(error)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise Unavailable(f"the lab's cache cannot be written: {error}") from error


def _unpacked(where: Path) -> Kernel | None:
    """What is cached, if it is whole and still what was unpacked."""
    try:
        record = json.loads((where / "kernel.json").read_text())
        vmlinux = where / "vmlinux"
        with vmlinux.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != record["sha256"]:
                return None
        return Kernel(record["release"], vmlinux, where / "modules")
    except (OSError, ValueError, KeyError):
        return None


def _install(series: str, where: Path) -> Kernel:
    """Fetch and unpack beside `where`, then put it there whole."""
    where.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=where.parent, prefix="new-") as directory:
        work = Path(directory)
        apt = _Apt(work / "apt")
        package = _newest(apt, series)
        _run("dpkg-deb", "-x", str(apt.download(package, work)), str(work / "deb"))
        made = work / "made"
        made.mkdir()
        release = package.removeprefix("linux-image-").removesuffix("-unsigned")
        _extract_elf(work / "deb/boot" / f"vmlinuz-{release}", made / "vmlinux")
        _modules(work / "deb", release, made)
        with (made / "vmlinux").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = Kernel(release, where / "vmlinux", where / "modules")
        record = {"package": package, "sha256": digest, **asdict(found)}
        (made / "kernel.json").write_text(json.dumps(record, default=str, indent=1))
        shutil.rmtree(where, ignore_errors=True)
        made.rename(where)
    return found


class _Apt:
    """apt with directories of its own: what the system has configured is not touched."""

    def __init__(self, directory: Path) -> None:
        for part in ("state/lists/partial", "cache/archives/partial", "etc/apt.conf.d"):
            (directory / part).mkdir(parents=True)
        self.options = [
            *("-o", f"Dir::State={directory}/state", "-o", f"Dir::Cache={directory}/cache"),
            *("-o", f"Dir::Etc={directory}/etc", "-o", "Acquire::Languages=none"),
            *("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"),
        ]
        sites = _run("apt-get", "indextargets", "--format", "$(SITE)").split()
        if not sites:
            raise Unavailable("apt has no mirror configured")
        lines = [f"deb [signed-by={_KEYRING}] {sites[0]} {suite} main" for suite in _SUITES]
        (directory / "etc/sources.list").write_text("\n".join(lines) + "\n")
        # A suite that the mirror does not serve is no failure, as long as others are.
        _run("apt-get", *self.options, "-qq", "update", check=False)

    def packages(self, pattern: str) -> list[str]:
        found = _run("apt-cache", *self.options, "search", "--names-only", pattern)
        return [line.split()[0] for line in found.splitlines()]

    def download(self, package: str, into: Path) -> Path:
        _run("apt-get", *self.options, "-qq", "download", package, cwd=into)
        return next(into.glob("*.deb"))


def _newest(apt: _Apt, series: str) -> str:
    """Signed or not: the lab does not ask. Flavours (cloud, rt) lack modules."""
    pattern = rf"^linux-image-{re.escape(series)}\.[0-9][^ ]*-amd64(-unsigned)?$"
    found = [p for p in apt.packages(pattern) if not re.search(r"-(cloud|rt)-", p)]
    if not found:
        raise Unavailable(f"the mirror serves no kernel {series}")
    return max(found, key=_version)


def _version(package: str) -> tuple[list[int], bool]:
    return [int(n) for n in re.findall(r"\d+", package)], not package.endswith("-unsigned")


def _extract_elf(image: Path, elf: Path) -> None:
    """The kernel proper within a bzImage, whichever way it was compressed."""
    data = image.read_bytes()
    for magic, command in ((b"\x28\xb5\x2f\xfd", "zstd"), (b"\xfd7zXZ\x00", "xz")):
        at = data.find(magic)
        while at >= 0:
            done = subprocess.run(
                [command, "-dcq"], input=data[at:], capture_output=True, check=False
            )
            # What follows the compressed part in the image makes the tools complain.
            if done.stdout.startswith(b"\x7fELF"):
                elf.write_bytes(done.stdout)
                return
            at = data.find(magic, at + 1)
    raise Unavailable(f"no ELF kernel found in {image.name}")


def _modules(unpacked: Path, release: str, made: Path) -> None:
    """The wanted part of the module tree, decompressed: the guest's processor is slow."""
    tree = next(
        path
        for path in (unpacked / "usr/lib/modules" / release, unpacked / "lib/modules" / release)
        if path.exists()
    )
    for part in _UNWANTED:
        shutil.rmtree(tree / "kernel" / part, ignore_errors=True)
    packed = [str(path) for path in tree.rglob("*.ko.xz")]
    for first in range(0, len(packed), 200):
        _run("xz", "-d", "-T0", *packed[first : first + 200])
    (made / "modules").mkdir()
    tree.rename(made / "modules" / release)
    # depmod wants the tree below lib/modules.
    (made / "lib").symlink_to(".")
    _run("depmod", "-b", str(made), release)


def _run(*command: str, cwd: Path | None = None, check: bool = True) -> str:
    return _output(command, cwd, check)


def _output(command: Sequence[str], cwd: Path | None, check: bool) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        check=check,
        timeout=600,
        env={**os.environ, "PATH": _path(), "LC_ALL": "C"},
    )
    return done.stdout
