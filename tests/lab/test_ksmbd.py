"""The kernel's SMB server, and an SMB 3 client: its operations on a sealed file.

The client and the server are one machine, by the loopback address. Who acts is a worker of the
kernel's (`ksmbd-io`), which is in no system call.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import smb
from tests.lab.exported import Export, acting, change_nothing, recalled, sealed, sealing
from tests.lab.pmem import mounted_dax
from tests.support.waiting import PATIENCE

CHANGES = {
    "truncate": "os.truncate(path, 4096)",  # SET_INFO of the end of file
    "open-trunc": "os.open(path, os.O_RDWR | os.O_TRUNC)",  # CREATE with overwrite
    "punch": "sc.fallocate(os.open(path, os.O_RDWR), 3, 65536, 65536)",  # SET_ZERO_DATA, sparse
    "zero": "sc.fallocate(os.open(path, os.O_RDWR), 0x10, 65536, 65536)",  # SET_ZERO_DATA
    "copy-over": "os.copy_file_range(os.open(other, os.O_RDONLY), os.open(path, os.O_RDWR), 65536,"
    " 0, 0)",  # SRV_COPYCHUNK_WRITE
    "clone-over": "sc.clone(os.open(path, os.O_RDWR), os.open(other, os.O_RDONLY))",
    "clone-of": "sc.clone(os.open(other, os.O_RDWR), os.open(path, os.O_RDONLY))",
}
HARMLESS = {
    "read": "os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 65536)], 0)",
    "write": "os.pwrite(os.open(path, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 65536), 65536)",
}

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    place = tmp_path_factory.mktemp("smb")
    with (
        mounted_dax("xfs", reflink=True, options="dax=never") as root,
        smb.exported(root, place / "client", place),
    ):
        yield root, place / "client"


@pytest.fixture(scope="module", params=["bpf", "fanotify"])
def export(
    request: pytest.FixtureRequest,
    mounted: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Export]:
    directory = tmp_path_factory.mktemp("service")
    with sealing(*mounted, request.param.split(","), directory) as made:
        yield made


@pytest.mark.parametrize("name", CHANGES)
def test_a_client_changes_no_sealed_map(export: Export, name: str) -> None:
    change_nothing(export, name, CHANGES[name])


@pytest.mark.parametrize("name", HARMLESS)
def test_reads_and_writes_in_place_recall_nothing(export: Export, name: str) -> None:
    here = export.name(name)
    with sealed(export, here) as (client, seal), acting(export, here, HARMLESS[name]) as actor:
        assert actor.wait(PATIENCE) == 0
        assert not recalled(client, seal, 0.5)
