"""What went wrong in a request of a PI channel: from its native record to the queue of errors."""

from __future__ import annotations

import time
from contextlib import suppress
from errno import EILSEQ
from typing import Any

import msgspec
from _sealsvc_pi_device import lib

from sealsvc.core import extents
from sealsvc.core.errors import Refusal
from sealsvc.core.model import ByteRange
from sealsvc.integrity import sense
from sealsvc.lifecycle.seals import Seal
from sealsvc.protocol.integrity import PiError
from sealsvc.protocol.pi_device import PiFailure, PiPathInfo

FIELDS = {
    int(lib.SEAL_FIELD_TAG): "tag",
    int(lib.SEAL_FIELD_CHECKSUM): "checksum",
    int(lib.SEAL_FIELD_REFTAG): "reftag",
}
_SECTOR = 512
_PROTECTION = 0x10  # additional sense code (SPC-5 annex D); its qualifiers
_WRONG = {1: "checksum", 2: "tag", 3: "reftag"}
CHECKERS = {
    int(lib.SEAL_BY_CLIENT): "client",
    int(lib.SEAL_BY_SERVICE): "service",
    int(lib.SEAL_BY_DEVICE): "device",
}


def failure_of(report: Any, interval: int) -> PiFailure:
    """Of a struct seal_channel_report, of a device with such an interval (bytes)."""
    request, answer = report.request, report.answer
    write = request.op == lib.SEAL_CHANNEL_WRITE
    return failure(
        answer.error,
        "write" if write else "read",
        -answer.status,
        (request.offset, request.length),
        request.cookie,
        interval,
    )


def failure(
    error: Any, operation: str, errno: int, asked: tuple[int, int], cookie: int, interval: int
) -> PiFailure:
    """Of a struct seal_channel_error; `asked` are offset and length of the request."""
    field, located = FIELDS.get(error.field, ""), bool(error.located)
    return PiFailure(
        operation=operation,
        cookie=cookie,
        errno=errno,
        checker=CHECKERS.get(error.checker, ""),
        field=field,
        located=located,
        offset=error.offset if located else asked[0],
        length=interval if located else asked[1],
        sector=error.sector if located else None,
        expected=error.expected if field else None,
        found=error.found if field else None,
    )


def as_error(seal: Seal, device: PiPathInfo, failed: PiFailure) -> PiError:
    """The record for the queue of errors, without its number there. It belongs to no attachment:
    its block is counted from the start of the file."""
    return PiError(
        seq=0,
        time=time.time(),
        kind="refused" if failed.errno == EILSEQ else "unreadable",
        at=failed.operation,
        attachment="",
        path=seal.path,
        file=seal.file,
        profile=device.profile,
        block=failed.offset // device.interval,
        offset=failed.offset,
        length=failed.length,
        field=failed.field,
        expected=_in_tag(device, failed.field, failed.expected),
        found=_in_tag(device, failed.field, failed.found),
        physical=None if failed.sector is None else failed.sector * _SECTOR,
        seal=seal.id,
        holder=seal.process.holder.pid,
        cookie=failed.cookie,
        first_good=None,
        last_good=None,
        errno=failed.errno,
        checker=failed.checker,
    )


def with_sense(seal: Seal, device: PiPathInfo, error: PiError) -> PiError:
    """The same with what a SCSI disk says about a read that it failed; blocks."""
    span, found = ByteRange(error.offset, error.length), None
    if error.at == "read" and error.checker in ("", "device"):
        with suppress(OSError, Refusal):
            found = sense.of_file(seal.file.device, seal.map, span)
    if found is None:
        return error
    said, place = found
    here = extents.clip(seal.map, ByteRange(place.offset, 1))
    field = _WRONG.get(said.ascq, "") if said.asc == _PROTECTION else ""
    return msgspec.structs.replace(
        error,
        sense=said,
        checker="device",
        field=error.field or field,
        block=place.offset // device.interval,
        offset=place.offset,
        length=place.length,
        physical=int(here[0][1]) if len(here) and place != span else error.physical,
    )


def _in_tag(device: PiPathInfo, field: str, value: int | None) -> str:
    """Hexadecimal, as wide as the field is in a tuple."""
    if value is None:
        return ""
    guard = device.pi_size - device.app_size - (6 if device.pi_size == 16 else 4)
    reftag = device.pi_size - device.app_size - guard
    width = {"checksum": guard, "tag": device.app_size, "reftag": reftag}[field]
    return value.to_bytes(width, "big").hex()
