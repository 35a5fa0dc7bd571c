"""validate: what it asks, and what it makes of the answers."""

from __future__ import annotations

import json

import pytest
from fake_daemon import ONE, FakeDaemon, as_json
from sealctl_process import Start

from sealsvc.core.model import State
from sealsvc.protocol.seals import Mapped, MappingReport

REPORT = MappingReport(
    seal=ONE.id,
    seqid=2,
    state=State.ACTIVE,
    vmas=2,
    pages=512,
    present=512,
    huge_pages=1,
    pfn_checked=512,
    method="pagemap-scan",
    dax=True,
    notes=["PFN proof \x1b not available"],
)


@pytest.mark.parametrize(
    ("arguments", "address"),
    [((), None), (("--address", "7f00"), 0x7F00), (("--address", "0x7F00"), 0x7F00)],
)
def test_validate(
    daemon: FakeDaemon, sealctl: Start, arguments: tuple[str, ...], address: int | None
) -> None:
    running = sealctl("validate", ONE.id, *arguments)
    request = daemon.serve(Mapped, REPORT)
    assert (request.seal, request.address) == (ONE.id, address)
    status, out, _ = running.result()
    rows = dict(row.split(maxsplit=1) for row in out.splitlines())
    assert status == 0
    assert rows["state"].strip() == "active"
    assert rows["mappings"].strip() == "2, by pagemap-scan, DAX"
    assert rows["pages"].strip() == "512 present of 512, 1 huge (2M)"
    assert "\x1b" not in out


def test_validate_json(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("-o", "json", "validate", ONE.id)
    daemon.serve(Mapped, REPORT)
    assert json.loads(running.result()[1]) == as_json(REPORT)


def test_an_invalid_mapping(daemon: FakeDaemon, sealctl: Start) -> None:
    running = sealctl("validate", ONE.id)
    connection = daemon.accept()
    request, _ = connection.request(Mapped)
    connection.fail(request, "mapping-invalid", "in process 7, byte 0: expected x, found y")
    status, _, err = running.result()
    assert status == 6
    assert "byte 0: expected x, found y" in err


@pytest.mark.parametrize("address", ["0", "-1", "next", "f" * 17])
def test_what_is_no_address(sealctl: Start, address: str) -> None:
    status, _, err = sealctl("validate", ONE.id, "--address", address).result()
    assert status == 2
    assert "is not an address" in err
