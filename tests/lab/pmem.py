"""File systems on the lab's persistent memory."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sealsvc.linux import native
from tests.support.scratch import allow_exchange
from tests.support.waiting import until

STATX_ATTR_DAX = 0x00200000  # include/uapi/linux/stat.h


@contextmanager
def mounted_dax(
    fstype: str,
    *,
    reflink: bool = False,
    pmd: bool = False,
    options: str = "dax=always",
    exchange: bool = False,
    device: str = "/dev/pmem0",
) -> Iterator[Path]:
    """A new XFS or ext4 on `device`, mounted while the context lasts. With `pmd` XFS aligns its
    extents for 2 MiB mappings (ext4 does so anyhow); with `exchange` it exchanges ranges. With
    dax=always, it is made sure that DAX is on: a file system turns it off silently where it cannot
    be had."""
    arguments = {
        "ext4": ["-F", "-b", "4096"],
        "xfs": ["-f", "-m", f"reflink={int(reflink)}", *(["-d", "su=2m,sw=1"] if pmd else [])],
    }[fstype]
    _run(f"mkfs.{fstype}", "-q", *arguments, device)
    if exchange:
        allow_exchange(device)
    with tempfile.TemporaryDirectory(prefix="dax-") as directory:
        point = Path(directory)
        _run("mount", "-t", fstype, "-o", options, device, str(point))
        try:
            if "dax=always" in options.split(","):
                _assert_dax(point)
            yield point
        finally:
            _unmount(point)


def _unmount(point: Path) -> None:
    """Whoever is being reaped may keep it busy a little longer."""
    for _ in range(600):
        if subprocess.run(["umount", point], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    _run("umount", str(point))


def is_held(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process waits for pages that are in use, once it has come so far. Where it spins
    without sleeping, half a minute tells."""

    def settled() -> bool:
        if process.poll() is not None:
            return True
        asleep = Path(f"/proc/{process.pid}/wchan").read_text()
        return re.search("wait_dax_page|break.*_layout", asleep) is not None

    with suppress(AssertionError):
        until(settled, 30)
    return process.poll() is None


def _assert_dax(point: Path) -> None:
    line = next(x for x in Path("/proc/mounts").read_text().splitlines() if f" {point} " in x)
    assert "dax=always" in line, line
    probe = point / "probe"
    with probe.open("w+b") as file:
        assert native.statx_attributes(file.fileno()) & STATX_ATTR_DAX, "the file has no DAX"
    probe.unlink()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
