"""File systems on the lab's persistent memory."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sealsvc import native

DEVICE = "/dev/pmem0"
STATX_ATTR_DAX = 0x00200000  # include/uapi/linux/stat.h


@contextmanager
def mounted_dax(
    fstype: str, *, reflink: bool = False, pmd: bool = False, options: str = "dax=always"
) -> Iterator[Path]:
    """A new XFS or ext4 on /dev/pmem0, mounted while the context lasts. With `pmd` its extents are
    aligned for 2 MiB mappings (ext4's are anyhow). That DAX is really on is made sure of: a
    file system turns it off silently where it cannot be had."""
    arguments = ["-F", "-b", "4096"]
    if fstype == "xfs":
        arguments = ["-f", "-m", f"reflink={int(reflink)}"]
        if pmd:
            arguments += ["-d", "su=2m,sw=1"]
    _run(f"mkfs.{fstype}", "-q", *arguments, DEVICE)
    with tempfile.TemporaryDirectory(prefix="dax-") as directory:
        point = Path(directory)
        _run("mount", "-t", fstype, "-o", options, DEVICE, str(point))
        try:
            if options == "dax=always":
                _assert_dax(point)
            yield point
        finally:
            _run("umount", str(point))


def _assert_dax(point: Path) -> None:
    line = next(x for x in Path("/proc/mounts").read_text().splitlines() if f" {point} " in x)
    assert "dax=always" in line, line
    probe = point / "probe"
    with probe.open("w+b") as file:
        assert native.statx_attributes(file.fileno()) & STATX_ATTR_DAX, "the file has no DAX"
    probe.unlink()


def _run(*command: str) -> None:
    commands: Sequence[str] = command
    done = subprocess.run(commands, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
