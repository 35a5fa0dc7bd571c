"""Mapping validation on real fsdax: what a mapping must be, and each way in which it is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sealsvc.client import Client
from sealsvc.linux.host.pmem import base_of
from sealsvc.protocol.seals import Return
from tests.lab.dax_files import HUGE, PAGE, SIZE, SYNCHRONOUS, MiB, ask, extents, make
from tests.lab.pmem import mounted_dax
from tests.service.mapping_holder import Holder, holder
from tests.support.refusals import refusal
from tests.support.service import RISKS, serving
from tests.support.waiting import PATIENCE

REQUIRE = {"map_sync": True, "populate": True, "pmd": True}
UNALIGNED = "(libc.mmap(None, size + 2**22, 0, 0x22, -1, 0) & -2**21) + 2**21 + PAGE"

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]
VARIANTS = {
    "xfs": {"fstype": "xfs", "reflink": False, "pmd": True},
    "xfs-reflink": {"fstype": "xfs", "reflink": True, "pmd": True},
    "ext4": {"fstype": "ext4"},
}


@pytest.fixture(scope="module", params=VARIANTS)
def dax(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[tuple[Path, str]]:
    with (
        mounted_dax(**VARIANTS[request.param]) as point,
        serving(tmp_path_factory.mktemp("daemon"), [point], RISKS) as socket,
    ):
        yield point, socket


@pytest.fixture
def scene(
    dax: tuple[Path, str],
) -> Iterator[tuple[Client, Path, Callable[..., tuple[Holder, str]]]]:
    point, socket = dax
    path = make(point / "file")
    with Client(socket, timeout=PATIENCE) as client, ExitStack() as stack:

        def grant(**fields: Any) -> tuple[Holder, str]:
            process = stack.enter_context(holder(path))
            terms = {"kind": "shared", "require": REQUIRE, **fields}
            seal = client.grant(path=str(path), holder={"pid": process.pid}, **terms).seal
            return process, seal.id

        yield client, path, grant
    path.unlink()


def test_the_proof_of_a_synchronous_mapping(scene) -> None:
    client, path, grant = scene
    process, seal = grant()
    address = process.do(SYNCHRONOUS)
    pages = SIZE // PAGE
    for where in (address, None):
        report = client.validate(seal, where)
        assert (report.state, report.dax, report.method) == ("active", True, "pagemap-scan")
        assert (report.vmas, report.pages, report.present) == (1, pages, pages)
        assert (report.huge_pages, report.pfn_checked, report.notes) == (4, pages, [])
    found = ask(process, path, map=extents(path), base=base_of(path.stat().st_dev))
    assert found.entries == 4, "one entry tells for a huge page"
    process.do(f"libc.munmap({address}, size)")
    client.call(Return, seal=seal)


def test_every_small_page_is_proven(scene) -> None:
    client, path, grant = scene
    process, seal = grant(require={"map_sync": True, "populate": True})
    address = process.do(f"mapped(SYNC | POPULATE | FIXED, {UNALIGNED})")
    report = client.validate(seal, address)
    assert (report.huge_pages, report.pfn_checked) == (0, SIZE // PAGE)
    base, rows = base_of(path.stat().st_dev), extents(path)
    assert ask(process, path, map=rows, base=base).entries == SIZE // PAGE
    refused = ask(process, path, huge=True).failed
    assert refused
    assert (refused.check, refused.offset) == ("huge", 0)
    # What a page that is elsewhere would look like.
    tampered = np.array(
        [[0, rows[0, 1], 5 * PAGE, 0], [5 * PAGE, rows[0, 1] + 6 * PAGE, SIZE - 5 * PAGE, 0]],
        np.uint64,
    )
    failed = ask(process, path, map=tampered, base=base).failed
    assert failed
    assert (failed.check, failed.offset, failed.address) == ("pfn", 5 * PAGE, address + 5 * PAGE)
    assert failed.expected == failed.found + PAGE
    failed = ask(process, path, map=rows, base=base + PAGE).failed
    assert failed
    assert (failed.check, failed.offset) == ("pfn", 0)


def test_a_moved_extent_below_a_huge_page_is_found(scene) -> None:
    _, path, grant = scene
    process, _ = grant()
    process.do(SYNCHRONOUS)
    base, rows = base_of(path.stat().st_dev), extents(path)
    start = int(rows[0, 1])
    pieces = [[0, start, 3 * MiB, 0], [3 * MiB, start + 3 * MiB + PAGE, SIZE - 3 * MiB, 0]]
    found = ask(process, path, huge=True, map=np.array(pieces, np.uint64), base=base)
    assert found.failed
    assert (found.failed.check, found.failed.offset) == ("pfn", 3 * MiB)
    assert found.placed == 3 * MiB // PAGE


@pytest.mark.parametrize(
    ("line", "then", "what", "offset"),
    [
        ("mapped(SHARED | POPULATE)", "", "map-sync", 0),
        (SYNCHRONOUS, "libc.madvise({address} + 3 * 2**20, 5 * PAGE, 4)", "present", HUGE),
        ("mapped(SYNC)", "", "present", 0),
        ("mapped(PRIVATE | POPULATE)", "", "shared", 0),
        ("mapped(SYNC | POPULATE, length=size - PAGE)", "", "coverage", SIZE - PAGE),
        (SYNCHRONOUS, "libc.munmap({address} + 4 * 2**20, PAGE)", "coverage", 4 * MiB),
        (SYNCHRONOUS, "libc.munmap({address}, size)", "coverage", 0),
        ("mapped(SYNC | POPULATE, length=size - PAGE, offset=PAGE)", "", "offset", 0),
        # Splitting an area drops the huge page beneath.
        (SYNCHRONOUS, "libc.mprotect({address} + 2**20, PAGE, 1)", "present", 0),
        (f"mapped(SYNC | POPULATE | FIXED, {UNALIGNED})", "", "huge", 0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_wrong_is_named(scene, line: str, then: str, what: str, offset: int) -> None:
    client, _, grant = scene
    process, seal = grant()
    address = process.do(line)
    if then:
        process.do(then.format(address=address))
    refused = refusal(lambda: client.validate(seal, address))
    assert refused.code == "mapping-invalid"
    if what == "present" and offset:  # a huge page goes whole, or in pieces
        assert refused.details["check"] == what
        assert refused.details["offset"] in (HUGE, 3 * MiB)
    else:
        assert (refused.details["check"], refused.details["offset"]) == (what, offset)
        assert refused.details["address"] == address + offset


def test_another_file(scene) -> None:
    client, path, grant = scene
    another = make(path.with_suffix(".other"))
    process, seal = grant()
    address = process.do(f"mapped(SYNC | POPULATE, fd=os.open({str(another)!r}, os.O_RDWR))")
    refused = refusal(lambda: client.validate(seal, address))
    assert refused.details["check"] == "inode"
    assert refused.details["found"].endswith(f"/{another.stat().st_ino}")
    another.unlink()


def test_one_of_many_pieces_without_map_sync(scene) -> None:
    client, _, grant = scene
    process, seal = grant(require={"map_sync": True, "populate": True})
    address = process.do(SYNCHRONOUS)
    at = f"{address} + 3 * PAGE"
    process.do(f"mapped(SHARED | POPULATE | FIXED, {at}, PAGE, 3 * PAGE)")
    refused = refusal(lambda: client.validate(seal, address))
    assert (refused.details["check"], refused.details["offset"]) == ("map-sync", 3 * PAGE)
