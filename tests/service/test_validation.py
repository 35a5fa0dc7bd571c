"""A holder says that it has mapped its range, and the service looks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from sealsvc.client import Client
from sealsvc.core.errors import Refusal
from sealsvc.protocol.events import Event, Watch
from sealsvc.protocol.seals import List, RecallSeals, Return, Show
from tests.service.mapping_holder import Holder, holder
from tests.support.refusals import refusal
from tests.support.service import RISKS, Running
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.kernel
PAGE = 4096
MiB = 1 << 20


@pytest.fixture
def held(client: Client, file: Path) -> Iterator[Callable[..., tuple[Holder, str]]]:
    """A holder, and the id of a seal that it has of the file."""
    with ExitStack() as stack:

        def grant(*before: str, **fields: object) -> tuple[Holder, str]:
            made = stack.enter_context(holder(file, *before))
            terms = {"kind": "shared", "require": {"populate": True}, **fields}
            reply = client.grant(path=str(file), holder={"pid": made.pid}, **terms)
            stack.callback(done, reply.seal.id)
            return made, reply.seal.id

        def done(seal: str) -> None:
            with suppress(Refusal):  # it has ended by itself
                client.call(RecallSeals, seal=seal, grace=20.0)

        yield grant
    until(lambda: not [s for s in client.call(List, limit=40).result.seals if s.path == str(file)])


def check(client: Client, seal: str, address: int | None = None) -> tuple[str, Refusal]:
    refused = refusal(lambda: client.validate(seal, address))
    assert refused.code == "mapping-invalid", refused
    return refused.details["check"], refused


def state(client: Client, seal: str) -> tuple[str, int]:
    info = client.call(Show, seal=seal).seal
    return info.state, info.seqid


def test_a_populated_mapping_makes_the_seal_active(client: Client, held) -> None:
    process, seal = held()
    address = process.do("mapped()")
    assert state(client, seal) == ("granted", 1)
    client.call(Watch)
    report = client.validate(seal, address, seqid=1)
    assert (report.state, report.seqid, report.seal) == ("active", 2, seal)
    assert (report.vmas, report.pages, report.present) == (1, 256, 256)
    assert (report.dax, report.pfn_checked) == (False, 0)
    assert "page cache" in report.notes[0]
    assert state(client, seal) == ("active", 2)
    event = next(p for p in client.pushes(PATIENCE) if isinstance(p, Event) and p.seal == seal)
    assert (event.name, event.data["from"], event.data["to"]) == ("state", "granted", "active")


def test_an_active_seal_is_validated_again_and_stays(client: Client, held) -> None:
    process, seal = held()
    address = process.do("mapped()")
    first = client.validate(seal)
    assert client.validate(seal, address) == first
    process.do(f"libc.madvise({address}, {PAGE}, 4)")  # MADV_DONTNEED
    what, refused = check(client, seal)
    assert what == "present"
    assert refused.details == {
        "check": "present",
        "offset": 0,
        "address": address,
        "expected": "a page that is present",
        "found": "none",
    }
    assert state(client, seal) == ("active", 2)


def test_no_mapping_at_all(client: Client, held) -> None:
    _, seal = held()
    what, refused = check(client, seal)
    assert what == "coverage"
    assert refused.details["address"] is None
    assert state(client, seal) == ("granted", 1)


@pytest.mark.parametrize(
    ("line", "what", "offset"),
    [
        ("mapped(SHARED)", "present", 0),
        ("mapped(PRIVATE | POPULATE)", "shared", 0),
        ("mapped(length=size - PAGE)", "coverage", MiB - PAGE),
        ("mapped(length=size - PAGE, offset=PAGE)", "offset", 0),
    ],
)
def test_what_is_wrong_is_named(client: Client, held, line: str, what: str, offset: int) -> None:
    process, seal = held()
    address = process.do(line)
    found, refused = check(client, seal, address)
    assert (found, refused.details["offset"]) == (what, offset)
    assert refused.details["address"] == address + offset
    assert f"process {process.pid}" in refused.message
    assert state(client, seal) == ("granted", 1)


def test_pages_that_are_there_need_not_be_accessible(client: Client, held) -> None:
    """docs/sealctl.md: mapped PROT_NONE they pass `populate`."""
    process, seal = held()
    address = process.do("mapped()")
    assert process.do(f"libc.mprotect({address}, size, 0)") == 0
    assert client.validate(seal, address).state == "active"


def test_a_guard_region_is_found_by_populate_alone(client: Client, held) -> None:
    """docs/sealctl.md. MADV_GUARD_INSTALL: since Linux 6.13, and 6.15 for mappings of files."""
    populated, seal = held()
    address = populated.do("mapped()")
    if populated.do(f"libc.madvise({address + PAGE}, {PAGE}, 102)"):
        pytest.skip("this kernel has no guard regions in mappings of files")
    what, refused = check(client, seal, address)
    assert (what, refused.details["offset"]) == ("present", PAGE)
    lazily, seal = held(require={})
    address = lazily.do("mapped()")
    assert lazily.do(f"libc.madvise({address + PAGE}, {PAGE}, 102)") == 0
    assert client.validate(seal, address).state == "active"


def test_another_file(client: Client, held, file: Path) -> None:
    another = file.with_suffix(".another")
    another.write_bytes(bytes(MiB))
    process, seal = held()
    address = process.do(f"mapped(fd=os.open({str(another)!r}, os.O_RDWR))")
    what, refused = check(client, seal, address)
    assert what == "inode"
    assert refused.details["expected"].endswith(f"/{file.stat().st_ino}")
    assert refused.details["found"].endswith(f"/{another.stat().st_ino}")
    assert check(client, seal)[0] == "coverage"
    another.unlink()


def test_a_mapping_that_is_gone_again(client: Client, held) -> None:
    process, seal = held()
    address = process.do("mapped()")
    process.do(f"libc.munmap({address}, size)")
    assert check(client, seal, address)[0] == "coverage"


def test_the_wrong_address(client: Client, held) -> None:
    process, seal = held()
    address = process.do("mapped()")
    what, refused = check(client, seal, address + PAGE)
    assert what == "offset"
    assert refused.details["found"] == f"byte {PAGE}"
    assert refusal(lambda: client.validate(seal, address + 1)).code == "bad-request"
    assert check(client, seal, 16 * PAGE)[0] == "coverage"


def test_a_range_that_is_not_whole_pages(client: Client, held) -> None:
    process, seal = held(offset=PAGE + 100, length=2 * PAGE)
    address = process.do("mapped(offset=PAGE, length=3 * PAGE)")
    assert client.validate(seal, address + 100).pages == 3
    assert client.validate(seal).pages == 3


def test_a_split_mapping(client: Client, held) -> None:
    process, seal = held()
    address = process.do("mapped()")
    process.do(f"libc.mprotect({address} + 5 * PAGE, 3 * PAGE, 1)")
    report = client.validate(seal, address)
    assert (report.vmas, report.pages) == (3, 256)


def test_a_holder_in_other_namespaces(client: Client, held) -> None:
    process, seal = held("unshare", "--pid", "--mount", "--fork")
    address = process.do("mapped()")
    assert process.do("ping()") == 1
    assert client.validate(seal, address).present == 256
    process.do(f"libc.madvise({address}, size, 4)")
    assert check(client, seal)[0] == "present"


def test_a_holder_with_twenty_thousand_areas(client: Client, held, file: Path) -> None:
    another = file.with_suffix(".many")
    another.write_bytes(bytes(4 * PAGE))
    process, seal = held()
    process.do(f"many = os.open({str(another)!r}, os.O_RDWR)")
    process.do("room = libc.mmap(None, 20000 * PAGE, 0, 0x22, -1, 0)")
    line = "SHARED | FIXED, room + i * PAGE, PAGE, i % 2 * 2 * PAGE, many"
    process.do(f"sum(mapped({line}) > 0 for i in range(20000))")
    address = process.do("mapped()")
    for where in (address, None):  # a look that takes seconds is given up: try-later
        assert client.validate(seal, where).vmas == 1
    another.unlink()


def test_a_stale_seqid(client: Client, held) -> None:
    process, seal = held()
    process.do("mapped()")
    assert refusal(lambda: client.validate(seal, seqid=7)).code == "stale-seqid"
    assert refusal(lambda: client.validate("0" * 24)).code == "no-such-seal"


def test_a_recalled_seal_stays_recalled(client: Client, held) -> None:
    process, seal = held()
    process.do("mapped()")
    client.call(RecallSeals, seal=seal, grace=20.0)
    report = client.validate(seal)
    assert report.state == "recalled"
    assert report.present == 256


def test_a_validated_seal_can_be_returned(client: Client, held) -> None:
    process, seal = held()
    address = process.do("mapped()")
    client.validate(seal, address)
    process.do(f"libc.munmap({address}, size)")
    assert client.call(Return, seal=seal, seqid=2).seal.state == "returned"


@pytest.mark.parametrize("requirement", ["map_sync", "pmd"])
def test_what_only_dax_can_give_is_refused_at_once(
    client: Client, file: Path, requirement: str
) -> None:
    require = {requirement: True}
    refused = refusal(lambda: client.grant(path=str(file), kind="shared", require=require))
    assert refused.code == "not-dax"
    assert refused.details["require"] == [requirement]
    fd = os.open(file, os.O_RDWR)
    refused = refusal(lambda: client.grant([fd], kind="shared", require=require))
    assert refused.code == "not-dax"
    os.close(fd)
    # What is wrong with the path itself is told as ever.
    nobody = str(file) + ".nobody"
    assert refusal(lambda: client.grant(path=nobody, require=require)).code == "no-such-file"


def test_holders_that_end_meanwhile(client: Client, file: Path) -> None:
    """Validation, again and again, while the holder is killed: an answer, whichever it is, and no
    more of the seal afterwards."""
    for _ in range(5):
        with holder(file) as process:
            seal = client.grant(path=str(file), kind="shared", holder={"pid": process.pid}).seal.id
            process.do("mapped()")
            process.process.kill()
            codes: set[str] = set()

            def over(seal: str = seal, codes: set[str] = codes) -> bool:
                with suppress(Refusal):
                    client.validate(seal)
                    return False
                codes.add(refusal(lambda: client.validate(seal)).code)
                return bool(codes & {"no-such-holder", "no-such-seal"})

            until(over)
            # Its memory goes a little before it does.
            assert codes <= {"no-such-holder", "no-such-seal", "mapping-invalid"}


def test_an_active_seal_outlives_the_service(root: Path, file: Path, tmp_path: Path) -> None:
    running = Running(tmp_path, [root], RISKS)
    running.start()
    running.ready()
    try:
        with holder(file) as process:
            with Client(str(running.socket), timeout=PATIENCE) as client:
                terms = {"kind": "shared", "require": {"populate": True}}
                reply = client.grant(path=str(file), holder={"pid": process.pid}, **terms)
                seal = reply.seal.id
                address = process.do("mapped()")
                assert client.validate(seal).state == "active"
            running.kill()
            running.start()
            running.ready()
            with Client(str(running.socket), timeout=PATIENCE) as client:
                assert state(client, seal) == ("active", 2)
                assert client.validate(seal, address).present == 256
                process.do(f"libc.madvise({address}, size, 4)")
                assert check(client, seal)[0] == "present"
                process.do(f"libc.munmap({address}, size)")
                client.call(Return, seal=seal)
    finally:
        running.end()
