"""Tags that go with a copy below the file system, under the seals that the copy takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sealsvc.client import Client
from sealsvc.linux import native
from sealsvc.protocol.integrity import PiAttach, PiErrors, PiVerify
from sealsvc.protocol.seals import Return
from tests.copies.conftest import MiB, pattern
from tests.copies.stacks import filled
from tests.copies.test_copy_jobs import copied

pytestmark = pytest.mark.kernel
BLOCK = 4096
BLOCKS = 8 * MiB // BLOCK


def attached(client: Client, path: Path) -> str:
    reply = client.grant(path=str(path))
    os.close(reply.fds[0])
    made = client.call(PiAttach, seal=reply.seal.id, profile="t10-dif1-4096").result
    client.call(Return, seal=reply.seal.id)
    return made.id


def below(image: Path, path: Path, offset: int) -> None:
    """Flips a byte of the file on its disk, which is a file itself."""
    fd = os.open(path, os.O_RDONLY)
    try:
        rows = native.read_extents(fd, None).tolist()
        (place,) = [r[1] + offset - r[0] for r in rows if r[0] <= offset < r[0] + r[2]]
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    with image.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def verdicts(client: Client, attachment: str) -> dict[str, int]:
    found: dict[str, int] = client.call(PiVerify, attachment=attachment).result.blocks
    return found


def newest(client: Client) -> int:
    page: Any = client.call(PiErrors).result
    number = 0
    while page.errors:
        number, page = page.next, client.call(PiErrors, after=page.next).result
    return number


def test_a_lower_clone_takes_tags_along(socket: str, reference: Path) -> None:
    """What the copy's own seal covers is tagged by what was verified, never by what is found: a
    block outside of the range that was damaged before is still found."""
    a = filled(reference / "tags-a", pattern(8 * MiB))
    b = filled(reference / "tags-b", pattern(8 * MiB, seed=2))
    with Client(socket) as client:
        source, there = attached(client, a), attached(client, b)
        before = newest(client)
        result = copied(client, a, b, length=4 * MiB)
        assert result["bytes_by_strategy"] == {"lower": 4 * MiB}
        assert result["sealed"]
        (row,) = result["tags"]
        assert (row["attachment"], row["source"]) == (there, source)
        assert row["blocks"] == {"clean": BLOCKS // 2, "suspect": 0}
        assert client.call(PiErrors, after=before).result.errors == []
        assert verdicts(client, there) == {"good": BLOCKS}
        image = _image_of(reference)
        below(image, b, 6 * MiB)
        below(image, a, MiB)
        (row,) = copied(client, a, b, length=4 * MiB)["tags"]
        assert row["blocks"] == {"clean": BLOCKS // 2 - 1, "suspect": 1}
        found = verdicts(client, there)
        assert found["suspect"] == 1
        assert found.get("corrupt", 0) + found.get("changed", 0) == 1


def _image_of(point: Path) -> Path:
    """The backing file of the loop device that is mounted there."""
    device = os.stat(point).st_dev
    name = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file"
    return Path(Path(name).read_text().strip())
