"""The kernel's NFS server, and an NFS 4.2 client: its operations on a sealed file.

The client and the server are one machine, by the loopback address. Threads of nfsd are kernel
threads: they are in no system call, and there are four.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bench.lab import nfs
from tests.lab.exported import Export, acting, change_nothing, recalled, sealed, sealing
from tests.lab.pmem import mounted_dax
from tests.support.waiting import PATIENCE

THREADS = 4  # of nfsd (tests/bench/lab/nfs.py)

CHANGES = {
    "punch": "sc.fallocate(os.open(path, os.O_RDWR), 3, 65536, 65536)",
    "clone-of": "sc.clone(os.open(other, os.O_RDWR), os.open(path, os.O_RDONLY))",
    "clone-over": "sc.clone(os.open(path, os.O_RDWR), os.open(other, os.O_RDONLY))",
    "copy-of": "os.copy_file_range(os.open(path, os.O_RDONLY), os.open(other, os.O_RDWR), 65536,"
    " 0, 0)",
    "copy-over": "os.copy_file_range(os.open(other, os.O_RDONLY), os.open(path, os.O_RDWR), 65536,"
    " 0, 0)",
}
# By SETATTR: nfsd calls notify_change() itself, and fanotify has no event for that.
TRUNCATIONS = {
    "truncate": "os.truncate(path, 4096)",
    "open-trunc": "os.open(path, os.O_RDWR | os.O_TRUNC)",
}
HARMLESS = {
    "read": "os.preadv(os.open(path, os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 65536)], 0)",
    "write": "os.pwrite(os.open(path, os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 65536), 65536)",
    "write-and-commit": "fd = os.open(path, os.O_RDWR); os.pwrite(fd, b'x' * 512, 100);"
    " os.fsync(fd)",
}

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    if missing := nfs.missing():
        pytest.skip(f"not installed: {' '.join(missing)} (nfs-kernel-server, nfs-common)")
    client = tmp_path_factory.mktemp("nfs") / "client"
    with (
        mounted_dax("xfs", reflink=True, options="dax=never") as root,
        nfs.exported(root, client, layouts=False),
    ):
        yield root, client


@pytest.fixture(
    scope="module",
    params=["bpf", "fanotify", pytest.param("fanotify,bpf", marks=pytest.mark.long)],
)
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


@pytest.mark.parametrize("name", TRUNCATIONS)
def test_a_truncation_is_refused_or_a_risk_by_name(export: Export, name: str) -> None:
    name_here = export.name(name)
    with sealed(export, name_here) as (_, seal):
        if "bpf" not in export.enforcers:
            assert "nfs-truncate" in seal.accepted_risks
            return
        assert "nfs-truncate" not in seal.accepted_risks
        with acting(export, name_here, TRUNCATIONS[name]) as actor:
            assert actor.wait(PATIENCE) != 0


def test_an_allocation_moves_nothing(export: Export) -> None:
    """It fills holes, of which a sealed range has none. fanotify cannot tell it from a punch."""
    name = export.name("allocate")
    code = "sc.fallocate(os.open(path, os.O_RDWR), 0, 0, 1 << 20)"
    with ExitStack() as stack:
        with sealed(export, name) as (client, seal):
            actor = stack.enter_context(acting(export, name, code))
            if "fanotify" in export.enforcers:
                assert recalled(client, seal, PATIENCE)
            else:
                assert actor.wait(PATIENCE) == 0
        assert actor.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", HARMLESS)
def test_reads_and_writes_in_place_recall_nothing(export: Export, name: str) -> None:
    """Also of more at a time than nfsd has threads."""
    name_here = export.name(name)
    with sealed(export, name_here) as (client, seal), ExitStack() as stack:
        actors = [
            stack.enter_context(acting(export, name_here, HARMLESS[name]))
            for _ in range(THREADS + 1)
        ]
        assert [actor.wait(PATIENCE) for actor in actors] == [0] * len(actors)
        assert not recalled(client, seal, 0.5)


def test_those_who_wait_keep_no_thread_of_the_server(export: Export) -> None:
    """They are told to try again (NFS4ERR_DELAY), as with the server's own recalls."""
    if export.conflict == "refuse":
        pytest.skip("nobody waits")
    name = export.name("crowd")
    with ExitStack() as stack:
        with sealed(export, name) as (client, seal):
            actors = [
                stack.enter_context(acting(export, name, CHANGES["punch"]))
                for _ in range(THREADS + 1)
            ]
            assert recalled(client, seal, PATIENCE)
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                fresh = f"{name}-{time.monotonic_ns()}"
                with acting(export, fresh, "os.close(os.open(path, os.O_CREAT, 0o600))") as other:
                    assert other.wait(PATIENCE) == 0
                assert (export.root / fresh).exists()
            assert [actor.poll() for actor in actors] == [None] * len(actors)
            assert not recalled(client, seal, 0.1)  # once is enough
        assert [actor.wait(PATIENCE) for actor in actors] == [0] * len(actors)
