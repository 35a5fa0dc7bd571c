"""The reference device: a file system in an image on a file system that can share blocks."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scratch import PREFIX, _run, _unmount, mounted

MiB = 1 << 20
LOWER = {"xfs": ["-m", "reflink=1"], "btrfs": []}
UPPER = {"ext4": [], "xfs": ["-m", "reflink=0"]}


@contextmanager
def lower_filesystem(kind: str, size: int = 1024 * MiB) -> Iterator[Path]:
    with mounted(kind, size=size, mkfs_args=LOWER[kind]) as point:
        yield point


@contextmanager
def upper(
    lower: Path,
    kind: str,
    size: int = 320 * MiB,
    *,
    offset: int = 0,
    direct: bool = False,
    mkfs_args: Sequence[str] = (),
    name: str = "image",
) -> Iterator[Path]:
    """A mounted file system of `kind` in an image on `lower`; `offset` bytes of the image lie
    before it; `direct`: the loop device goes around the image's page cache."""
    image = lower / name
    with ExitStack() as stack:
        with image.open("xb") as file:
            file.truncate(offset + size)
        stack.callback(image.unlink)
        point = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f"{PREFIX}upper-")))
        options = ["--offset", str(offset), *(["--direct-io=on"] if direct else [])]
        loop = _run("losetup", "--find", "--show", *options, str(image)).strip()
        stack.callback(_run, "losetup", "--detach", loop)
        _run(f"mkfs.{kind}", "-q", *UPPER[kind], *mkfs_args, loop)
        _run("mount", "-t", kind, loop, str(point))
        stack.callback(_unmount, point)
        yield point


def filled(path: Path, data: bytes) -> Path:
    """Written through, in blocks of its own."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def same_bytes(a: Path, b: Path) -> bool:
    """By another program."""
    return subprocess.run(["cmp", "-s", a, b], check=False).returncode == 0
