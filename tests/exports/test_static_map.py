"""The static map: the places it tells are those of the file's bytes."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.core.model import Preparation
from sealsvc.exports.blocks import pieces
from sealsvc.exports.dm_ioctl import Target
from tests.exports.conftest import MiB
from tests.ring.test_ring_native import compiler
from tests.support.service import ROOT, Running


def sealctl(running: Running, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "sealsvc.cli.sealctl", "map", *map(str, arguments),
            "--socket", running.socket,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def read_device(device: str, offset: int, length: int) -> bytes:
    """Past the page cache of the block device, which nobody has written through."""
    name = Path(f"/sys/dev/block/{device}").resolve().name
    fd = os.open(f"/dev/{name}", os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as buffer:
            assert os.preadv(fd, [buffer], offset) == length
            return bytes(buffer)
    finally:
        os.close(fd)


@pytest.mark.kernel
def test_its_places_have_the_files_bytes(running: Running, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    refused = sealctl(running, "--static", "json", image)
    assert refused.returncode == 4
    assert "is not sealed" in refused.stderr
    with Client(str(running.socket)) as client:
        reply = client.grant(path=str(image), prepare=[Preparation.ALLOCATE])
        os.close(reply.fds[0])
        done = sealctl(running, "--static", "json", image)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["seal"], found["length"]) == (reply.seal.id, 16 * MiB)
        parts = [
            read_device(piece["device"], piece["physical"], piece["length"])
            for piece in found["pieces"]
        ]
        assert b"".join(parts) == before

        source = tmp_path / "map.c"
        source.write_text(sealctl(running, "--static", "c", image).stdout + SUM)
        program = tmp_path / "map"
        subprocess.run([compiler("cc"), "-Wall", "-Werror", source, "-o", program], check=True)
        said = subprocess.run([program], capture_output=True, text=True, check=True).stdout.split()
        assert said == [reply.seal.id, str(16 * MiB), str(found["pieces"][0]["physical"])]


SUM = """
#include <stdio.h>
int main(void)
{
    unsigned long long length = 0;
    for (unsigned n = 0; n < sealsvc_static_count; n++)
        length += sealsvc_static_map[n].length;
    printf("%s %llu %llu\\n", sealsvc_static_seal, length,
           (unsigned long long)sealsvc_static_map[0].physical);
    return 0;
}
"""

DISK, OTHER, LOWER, UPPER = (os.makedev(8, n) for n in (0, 16, 32, 48))
# UPPER is LOWER and a piece of OTHER; LOWER is two pieces of DISK, the second before the first.
TABLES = {
    LOWER: [Target(0, 8, "linear", "8:0 1000"), Target(8, 8, "linear", "8:0 500")],
    UPPER: [Target(0, 16, "linear", "8:32 0"), Target(16, 8, "linear", "8:16 24")],
}


def test_linear_devices_are_followed_to_the_devices_beneath() -> None:
    found = pieces([(0, 0, 24 * 512)], UPPER, 24 * 512, TABLES.get)
    assert [(p.logical // 512, p.physical // 512, p.length // 512, p.device) for p in found] == [
        (0, 1000, 8, "8:0"),
        (8, 500, 8, "8:0"),
        (16, 24, 8, "8:16"),
    ]


def test_neighbours_are_one_piece_and_the_end_is_cut_off() -> None:
    found = pieces([(0, 4096, 4096), (4096, 8192, 4096), (8192, 65536, 4096)], DISK, 8704, {}.get)
    assert [(p.logical, p.physical, p.length) for p in found] == [
        (0, 4096, 8192),
        (8192, 65536, 512),
    ]


def test_what_is_not_linear_is_refused() -> None:
    with pytest.raises(Refusal, match="device-mapper striped device"):
        pieces([(0, 0, 4096)], UPPER, 4096, {UPPER: [Target(0, 8, "striped", "2 8 8:0 0")]}.get)
