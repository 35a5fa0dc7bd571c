"""One line for each kind of event."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import msgspec

from sealsvc.cli.units import duration, exact_range
from sealsvc.core.model import ByteRange


def told(name: str, data: dict[str, Any]) -> str:
    """What the event of this name tells, for people. What a newer service adds is shown as its
    fields."""
    try:
        return TELL.get(name, _fields)(data)
    except (KeyError, TypeError, ValueError, AttributeError):  # told otherwise by another version
        return _fields(data)


def _granted(data: dict[str, Any]) -> str:
    seal = data["seal"]
    holder = seal["holder"]
    tag = f", tag {seal['tag']}" if seal.get("tag") else ""
    return (
        f"{seal['path']} {_range(seal['range'])} {seal['kind']}"
        f" to process {holder['pid']} ({holder['comm']}){tag}"
    )


def _refused(data: dict[str, Any]) -> str:
    return f"{data.get('path') or 'a descriptor'}: {data['code']}: {data['message']}"


def _state(data: dict[str, Any]) -> str:
    reason = data.get("reason")
    return f"{data['from']} -> {data['to']}" + (f" ({reason})" if reason else "")


def _operation(operation: dict[str, Any]) -> str:
    name, offset = operation["name"], operation["offset"]
    length = operation["length"]
    where = f"{offset}:{length}" if length else f"from {offset}"
    detail = f" {operation['detail']}" if operation.get("detail") else ""
    who = f"process {operation['pid']} ({operation.get('comm') or '?'})"
    return f"{name} {where}{detail} by {who}"


def _conflict(data: dict[str, Any]) -> str:
    verdict = {"held": "waits", "refused": "is refused"}.get(data["verdict"], data["verdict"])
    error = f" ({_errno(data['errno'])})" if data.get("errno") else ""
    repeated = f", {data['repeated']} times more" if data.get("repeated") else ""
    return f"{_operation(data['operation'])} {verdict}{error}{repeated}"


def _conflict_ended(data: dict[str, Any]) -> str:
    result = f"was refused ({_errno(data['result'])})" if data["result"] else "went on"
    return f"{_operation(data['operation'])} {result} after {duration(data['waited'])}"


def _recall(data: dict[str, Any]) -> str:
    by = f": {_operation(data['operation'])}" if data.get("operation") else ""
    joined = ", joins a recall under way" if data.get("merged") else ""
    wanted = f"{_range(data['wanted'])} " if data.get("wanted") else ""
    return f"{wanted}wanted within {duration(data['grace'])}, {data['reason']}{by}{joined}"


def _renewed(data: dict[str, Any]) -> str:
    return f"for {duration(data['ttl'])}" if data["ttl"] else "without end"


def _job(data: dict[str, Any]) -> str:
    job = data["job"]
    steps = f" {job['done']}/{job['total']}" if job["total"] else ""
    return f"{job['kind']} {job['state']}{steps} {job['step'] or job['error']}".rstrip()


def _drift(data: dict[str, Any]) -> str:
    drift = data["drift"]
    return f"{drift['path']} at {drift['logical']}: {drift['expected']}, now {drift['found']}"


def _integrity(data: dict[str, Any]) -> str:
    error = data["error"]
    field = f", {error['field']}" if error["field"] else ""
    more = f", and {error['more']} blocks more" if error.get("more") else ""
    return (
        f"{error['path']} block {error['block']} at {error['offset']}: {error['kind']}{field},"
        f" found at {error['at']}{more}"
    )


def _range(span: dict[str, Any]) -> str:
    return exact_range(ByteRange(span["offset"], span["length"]))


def _errno(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def _fields(data: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, str) else msgspec.json.encode(value).decode()}"
        for name, value in data.items()
    )


TELL: dict[str, Callable[[dict[str, Any]], str]] = {
    "granted": _granted,
    "refused": _refused,
    "state": _state,
    "conflict": _conflict,
    "recall": _recall,
    "renewed": _renewed,
    "conflict-ended": _conflict_ended,
    "reclaimed": lambda data: f"{data['seals']} seals of the service before were taken over",
    "recorded": lambda data: f"the registry can be written again; {data['lost']} events were lost",
    "job": _job,
    "policy": lambda data: f"read again; changed: {', '.join(data['changed']) or 'nothing'}",
    "drift": _drift,
    "alarm": lambda data: str(data["reason"]),
    "ring": lambda data: (
        f"ring {data['ring']}: {data['grants']} grants, {data['returns']} returns,"
        f" {data['recalls']} recalls"
    ),
    "integrity": _integrity,
    "gap": lambda data: f"{data['dropped']} events were dropped: this watcher reads too slowly",
}
