"""docs/protocol.md lists every message. After a change: python tests/docs/test_protocol_page.py"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import msgspec

from sealsvc.enforce.keeper_messages import GREETS
from sealsvc.linux.native import lib
from sealsvc.protocol import fixed
from sealsvc.protocol.base import (
    DEFAULT_SOCKET,
    MAX_ANSWER_FDS,
    MAX_FDS,
    MAX_MESSAGE,
    VERSION,
    Keyed,
    Request,
)
from sealsvc.protocol.events import EVENTS
from sealsvc.protocol.messages import AnyRequest, Push

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
_OF_EVERY = {field.name for kind in (Request, Keyed) for field in msgspec.structs.fields(kind)}
_SUBJECTS = {
    "seals": "Seals",
    "rings": "Rings",
    "events": "Events",
    "system": "The service",
    "admin": "Operators",
    "history": "History",
    "copies": "Copies",
    "relocation": "Relocation",
    "integrity": "Protection information",
    "pi_device": "Protection information on the device",
    "exports": "Exports",
    "messages": "Others",
}

_HEAD = f"""# The control protocol

For clients in other languages; from Python and C use [python.md](python.md) and
[ring.md](ring.md). Version {VERSION}.

## Transport

* An AF_UNIX socket of type SOCK_SEQPACKET, `{DEFAULT_SOCKET}` by default. One message is one
  datagram: a JSON object of at most {MAX_MESSAGE} bytes. libseal sends C structures instead
  (`native/abi/seal_control.h`; four operations, version {fixed.VERSION}), and is answered so: a
  connection has the form of its first message. What is pushed is JSON on both.
* Descriptors travel beside it (SCM_RIGHTS): at most {MAX_FDS} with a request, {MAX_ANSWER_FDS} with
  an answer. The service closes those that a request does not need.
* A client is the process that connected (SO_PEERCRED, SO_PEERPIDFD).
* Strings are Unicode without NUL. A byte of a file name that is no UTF-8 is written as the code
  point 0x10FF00 + byte.
* Sizes and offsets are bytes, times are seconds.

## Messages

A request has `op`, its name below; `id`, a number that is not in flight on this connection; and
`v`, the version ({VERSION}, the default). `principal` and `trace` are recorded and give no right.
One with `key` is carried out once: repeated by the same user, it is answered as before. Unknown
fields are refused (`bad-request`), so a client leaves out what is at its default.

Each request has one answer with its `id`, in any order. It is one of

* `{{"reply": "answer", "id": 1, "result": {{"type": ..., ...}}}}`
* `{{"reply": "failure", "id": 1, "code": ..., "message": ..., "details": {{...}}}}`, with a code of
  [errors.md](errors.md) and perhaps `retry_after`. `id` is null when the request was unreadable.

A client that ignores unknown fields of answers understands later services, too.
"""

_PUSHED = """
## Pushed by the service

Without an `id`, on the connection that asked for the seal, or that watches:

| reply | means |
| --- | --- |
"""

_KEEPER = f"""
## The keeper's socket

The keeper (`sealsvc-keeper`) outlives the service. Only the service, as root, speaks to it: C
structures in SOCK_SEQPACKET datagrams, described in
[keeper.h](../native/include/sealsvc/keeper.h), version {lib.KEEPER_VERSION}. Keepers from version
{GREETS} on understand a hello of fixed size (`struct keeper_hello`), by which a service finds
whether it can take the keeper over.
"""


def _spelled(kind: Any) -> str:
    if hasattr(kind, "__metadata__"):
        return _spelled(get_args(kind)[0])
    if arms := [arm for arm in get_args(kind) if arm is not NoneType]:
        origin = getattr(kind, "__origin__", None)
        inner = [_spelled(arm) for arm in arms]
        return (
            f"{origin.__name__} of {', '.join(inner)}"
            if origin in (list, dict, tuple)
            else " or ".join(inner)
        )
    return {"str": "text", "float": "number", "int": "integer"}.get(kind.__name__, kind.__name__)


def _fields(kind: type[msgspec.Struct]) -> str:
    own = [field for field in msgspec.structs.fields(kind) if field.name not in _OF_EVERY]
    told = [f"`{f.name}`{'' if f.required else '?'}: {_spelled(f.type)}" for f in own]
    return "; ".join(told) or "-"


def _means(kind: type) -> str:
    """The first sentence of its docstring."""
    text = " ".join((inspect.getdoc(kind) or "").split()).partition("Answer:")[0].strip()
    return re.split(r"(?<=[a-z`)])\. ", text)[0].rstrip(".").replace("|", "/")


def _answer(kind: type) -> str:
    return (re.findall(r"Answer:\s+(\w+)", inspect.getdoc(kind) or "") or ["-"])[-1]


def _tag(kind: type[msgspec.Struct]) -> str:
    return str(kind.__struct_config__.tag)


def render() -> str:
    parts = [_HEAD]
    kinds = get_args(AnyRequest)
    assert {kind.__module__.rpartition(".")[2] for kind in kinds} <= set(_SUBJECTS)
    for module, title in _SUBJECTS.items():
        of_it = [kind for kind in kinds if kind.__module__.endswith(f".{module}")]
        lines = [
            f"| `{_tag(kind)}` | {_means(kind)} | {_fields(kind)} | {_answer(kind)} |"
            for kind in of_it
        ]
        parts.append(
            f"\n### {title}\n\n| op | means | fields (? may be left out) | answer |\n"
            "| --- | --- | --- | --- |\n" + "\n".join(lines) + "\n"
        )
    parts.append(_PUSHED)
    parts += [f"| `{_tag(kind)}` | {_means(kind)} |\n" for kind in get_args(Push)]
    names = ", ".join(f"`{name}`" for name in EVENTS)
    parts.append(f"\nNames of events, by `watch`: {names}.\n")
    parts.append(_KEEPER)
    return "".join(parts)


def test_the_page_is_the_protocol() -> None:
    assert PAGE.read_text() == render()


if __name__ == "__main__":
    PAGE.write_text(render())
