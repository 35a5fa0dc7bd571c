"""prepare=allocate: by fallocate(2) alone, with no more room than a user has."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.linux import native
from sealsvc.protocol.seals import Return
from tests.support.refusals import refusal
from tests.support.scratch import MiB, mounted
from tests.support.service import RISKS, serving

pytestmark = pytest.mark.kernel

ALLOCATE = ["allocate", "convert"]
XFLAG_EXTSIZE = 0x800  # FS_XFLAG_EXTSIZE


def test_no_allocation_without_fallocate(tmp_path: Path) -> None:
    """ext4 without extents: nothing is written instead, and the refusal says why."""
    with (
        mounted("ext4", 128 * MiB, ["-O", "^extent,^64bit"]) as point,
        serving(tmp_path, [point], RISKS) as socket,
        Client(socket) as client,
    ):
        file = point / "file"
        file.write_bytes(bytes(4096))
        os.truncate(file, MiB)
        before = file.stat().st_blocks
        refused = refusal(lambda: client.grant(path=str(file), prepare=ALLOCATE))
        assert refused.code == "filesystem-unsupported"
        assert "fallocate" in refused.message
        assert file.stat().st_blocks == before


def test_the_size_stays(client: Client, file: Path) -> None:
    """Also where the last block of the range reaches beyond it."""
    os.truncate(file, 0)
    os.truncate(file, 10000)
    reply = client.grant(path=str(file), prepare=ALLOCATE)
    os.close(reply.fds[0])
    assert file.stat().st_size == 10000
    assert file.read_bytes() == bytes(10000)
    client.call(Return, seal=reply.seal.id)


def test_a_refusal_takes_the_alignment_back(tmp_path: Path) -> None:
    """The hint of the extent size is the file's as it was, where there is no room to allocate."""
    with (
        mounted("xfs") as point,
        serving(tmp_path, [point], RISKS) as socket,
        Client(socket) as client,
        (point / "file").open("wb") as file,
    ):
        terms = {"path": file.name, "kind": "shared", "prepare": ["align", *ALLOCATE]}
        os.truncate(file.name, 1 << 40)
        assert refusal(lambda: client.grant(**terms)).details["errno"] == errno.ENOSPC
        assert native.fsxattr(file.fileno()).extsize == 0
        assert not native.fsxattr(file.fileno()).xflags & XFLAG_EXTSIZE
        os.truncate(file.name, 4 * MiB)
        reply = client.grant(**terms)
        os.close(reply.fds[0])
        assert native.fsxattr(file.fileno()).extsize == 2 * MiB
        client.call(Return, seal=reply.seal.id)


@contextmanager
def quotas() -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            point = stack.enter_context(mounted("xfs", mount_args=["-o", "uquota"]))
        except RuntimeError as error:
            pytest.skip(f"no quotas here: {error}")
        yield point


def test_a_quota_that_would_be_exceeded(tmp_path: Path) -> None:
    """Found beforehand, so that nothing is allocated."""
    with quotas() as point:
        file = point / "file"
        file.touch()
        os.chown(file, 65534, 65534)
        os.truncate(file, 8 * MiB)
        limit = ["xfs_quota", "-x", "-c", "limit bhard=1m 65534", point]
        subprocess.run(limit, check=True, capture_output=True)
        with serving(tmp_path, [point], RISKS) as socket, Client(socket) as client:
            refused = refusal(lambda: client.grant(path=str(file), prepare=ALLOCATE))
            assert refused.details["errno"] == errno.EDQUOT
            assert "quota of user 65534" in refused.message
            assert file.stat().st_blocks == 0
            terms = {"prepare": ALLOCATE, "length": MiB // 2}
            os.close(client.grant(path=str(file), **terms).fds[0])
