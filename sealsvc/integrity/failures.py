"""What went wrong in a request of a PI channel, from its native record."""

from __future__ import annotations

from typing import Any

from _sealsvc_pi_device import lib

from sealsvc.integrity.device_messages import PiFailure

FIELDS = {
    int(lib.SEAL_FIELD_TAG): "tag",
    int(lib.SEAL_FIELD_CHECKSUM): "checksum",
    int(lib.SEAL_FIELD_REFTAG): "reftag",
}
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
