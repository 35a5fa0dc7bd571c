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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
    "sound", "drivers/accel", "drivers/bluetooth", "drivers/char/tpm", "drivers/comedi",
    "drivers/crypto", "drivers/edac", "drivers/gpu", "drivers/hid", "drivers/hwmon", "drivers/i2c",
    "drivers/iio", "drivers/input", "drivers/isdn", "drivers/leds", "drivers/media", "drivers/mfd",
    "drivers/mtd", "drivers/net/can", "drivers/net/ethernet", "drivers/net/phy", "drivers/net/usb",
    "drivers/net/wireless", "drivers/pinctrl", "drivers/platform", "drivers/power",
    "drivers/regulator", "drivers/staging", "drivers/thunderbolt", "drivers/usb", "drivers/video",
    "net/bluetooth", "net/can", "net/mac80211", "net/netfilter", "net/sched", "net/wireless",
)  # fmt: skip

_LAYOUT = 2  # of a cached kernel: one more whenever what is kept of a package changes
_SECONDS = 600.0  # for each command, and to wait for another process's download


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
    """The newest kernel of a series such as "6.12" or "7", or of all ("newest"). One that is cached
    is not looked for again. Raises Unavailable."""
    if missing := missing_tools():
        raise Unavailable(f"the lab needs {', '.join(missing)}: ./dev build installs them, as root")
    where = cache_directory() / f"{series}-{_LAYOUT}"
    if found := _unpacked(where):
        return found
    with _locked(cache_directory()):
        if found := _unpacked(where):
            return found
        try:
            return _install(series, where)
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"no kernel {series}: {_told(error)}") from error


def missing_tools() -> list[str]:
    return [tool for tool in _TOOLS if not shutil.which(tool, path=_path())]


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def _told(error: Exception) -> str:
    output = getattr(error, "stderr", None)
    return str(output).strip().splitlines()[-1] if output else str(error)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    deadline = time.monotonic() + _SECONDS
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("w") as lock:
            while not _lock(lock.fileno()):
                if time.monotonic() > deadline:
                    raise Unavailable("another process does not end to fetch a kernel")
                time.sleep(0.2)
            yield
    except PermissionError as error:
        raise Unavailable(f"the lab's cache cannot be written: {error}") from error


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unpacked(where: Path) -> Kernel | None:
    """What is cached, if it is whole and still what was unpacked."""
    try:
        record = json.loads((where / "kernel.json").read_text())
        vmlinux = where / "vmlinux"
        if _sha256(vmlinux) != record["sha256"]:
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
        release, packages = _newest(apt, series)
        debs = [apt.download(package, work / package) for package in packages]
        for deb in debs:
            _run("dpkg-deb", "-x", str(deb), str(work / "deb"))
        made = work / "made"
        made.mkdir()
        tree = _tree(work / "deb", release)
        image = tree / "vmlinuz"  # since 7.2
        if not image.exists():
            image = work / "deb/boot" / f"vmlinuz-{release}"
        _extract_elf(image, made / "vmlinux")
        _modules(tree, release, made)
        record = {
            "release": release,
            "sha256": _sha256(made / "vmlinux"),
            "packages": {deb.name: _sha256(deb) for deb in debs},
        }
        (made / "kernel.json").write_text(json.dumps(record, indent=1))
        shutil.rmtree(where, ignore_errors=True)
        made.rename(where)
    return Kernel(release, where / "vmlinux", where / "modules")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Apt:
    """apt with directories of its own: what the system has configured is not touched."""

    def __init__(self, directory: Path) -> None:
        for part in ("state/lists/partial", "cache/archives/partial", "etc/sources.list.d"):
            (directory / part).mkdir(parents=True)
        self._options = [
            *("-o", f"Dir::State={directory}/state", "-o", f"Dir::Cache={directory}/cache"),
            *("-o", f"Dir::Etc={directory}/etc", "-o", "Acquire::Languages=none"),
            *("-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=1"),
            *("-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30"),
        ]
        lines = [
            f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n"
            for mirror in _mirrors()
            for suite in _SUITES
        ]
        (directory / "etc/sources.list").write_text("".join(lines))
        # A suite that the mirror does not serve is no failure, as long as others are.
        self.complaints = self._run("apt-get", "-qq", "update", check=False).stderr

    def packages(self, pattern: str) -> list[str]:
        found = self._run("apt-cache", "search", "--names-only", pattern).stdout
        return [line.split()[0] for line in found.splitlines()]

    def download(self, package: str, into: Path) -> Path:
        into.mkdir()
        self._run("apt-get", "-qq", "download", package, cwd=into)
        return next(into.glob("*.deb"))

    def _run(
        self, tool: str, *arguments: str, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return _run(tool, *self._options, *arguments, cwd=cwd, check=check)


def _mirrors() -> list[str]:
    """Where the system gets Debian itself (not its security updates) from."""
    targets = _run("apt-get", "indextargets", "--format", "$(SITE) $(LABEL)").stdout
    sites = [site for site, _, label in (x.partition(" ") for x in targets.splitlines())
             if label == "Debian"]  # fmt: skip
    if not sites:
        raise Unavailable("apt has no Debian mirror configured, or was never updated")
    return sorted(set(sites))


def _newest(apt: _Apt, series: str) -> tuple[str, list[str]]:
    """The newest release of a series, and the packages that it consists of. When the default is no
    longer served, a newer release is taken."""
    offered = _releases(
        apt.packages(r"^linux-(image|binary|modules)-[0-9][^ ]*-amd64(-unsigned)?$")
    )
    served = [release for release in offered if release.startswith(f"{series}.")]
    if not served and series in (DEFAULT, "newest"):
        served = [release for release in offered if _version(release) > _version(DEFAULT)]
    if not served:
        said = apt.complaints.strip().splitlines()
        raise Unavailable(f"the mirror serves no kernel {series}{f': {said[-1]}' if said else ''}")
    release = max(served, key=_version)
    return release, offered[release]


def _releases(packages: list[str]) -> dict[str, list[str]]:
    """Debian's kernels by release. Until 6.18 the package linux-image has all of one; since 6.19 it
    is empty, and linux-binary has the kernel and linux-modules its modules. An unsigned kernel is
    taken where there is no other. Flavours (cloud, rt) are left out: they lack modules."""
    named = dict[tuple[str, str], str]()
    for package in sorted(packages):
        kind, release = re.fullmatch(r"linux-(\w+)-(.+?)(?:-unsigned)?", package).groups()  # type: ignore[union-attr]
        if not re.search(r"-(cloud|rt)-", release):
            named.setdefault((release, kind), package)
    found = dict[str, list[str]]()
    for release, kind in named:
        if kind == "modules" and (release, "binary") in named:
            found[release] = [named[release, "binary"], named[release, "modules"]]
        elif kind == "image" and (release, "binary") not in named:
            found[release] = [named[release, "image"]]
    return found


def _version(release: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", release)]


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


def _tree(unpacked: Path, release: str) -> Path:
    merged = unpacked / "usr/lib/modules" / release
    return merged if merged.exists() else unpacked / "lib/modules" / release


def _modules(tree: Path, release: str, made: Path) -> None:
    """The wanted part of the module tree, decompressed: the guest's processor is slow."""
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


def _run(
    *command: str, cwd: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        check=check,
        timeout=_SECONDS,
        env={**os.environ, "PATH": _path(), "LC_ALL": "C"},
    )
