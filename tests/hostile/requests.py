"""Requests at the edges of their types, made from the message definitions: what is added there is
tried as well."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
from msgspec import inspect

from sealsvc.protocol.messages import AnyRequest

TEXTS = (
    "\0",
    "a\0b",
    "",
    "x" * 5000,
    "\udcff",
    "\U0010ffff",
    "\U0010ff80/x",
    "../" * 100,
    "/" + "a/" * 2000,
    "\r\n\x1b[2J",
    "%s%n",
    "0" * 24,
    "f" * 24 + "\n",
)
NUMBERS = tuple(
    sign * number
    for number in (
        0,
        1,
        2**15,
        2**16,
        2**31 - 1,
        2**31,
        2**32,
        2**62,
        2**63 - 1,
        2**63,
        2**64,
        10**30,
    )
    for sign in (1, -1)
)
FRACTIONS = (0.0, -0.0, 1e-320, 0.1, 1e17, 1.7e308, -1.0)
OTHERS = (None, True, [], {}, [[]], {"": ""}, [None], "1", 1.5)


def kinds() -> list[type[msgspec.Struct]]:
    """Every request there is."""
    return sorted(_members(AnyRequest), key=lambda kind: str(kind.__struct_config__.tag))


def _members(union: Any) -> Iterator[Any]:
    for member in get_args(union):
        if get_args(member):
            yield from _members(member)
        else:
            yield member


def values(kind: inspect.Type) -> list[Any]:
    """What may be tried for a field of this type; what it may not have, too."""
    match kind:
        case inspect.StrType():
            return [*TEXTS, *OTHERS]
        case inspect.IntType():
            return [*NUMBERS, *OTHERS]
        case inspect.FloatType():
            return [*FRACTIONS, *NUMBERS, *OTHERS]
        case inspect.ListType():
            return [[value] for value in values(kind.item_type)] + [[], *OTHERS]
        case inspect.DictType():
            return [{"a": value} for value in values(kind.value_type)] + [*OTHERS]
        case inspect.UnionType():
            return list(itertools.chain.from_iterable(map(values, kind.types)))
        case inspect.StructType():
            plain = {
                field.encode_name: ordinary(field.type) for field in kind.fields if field.required
            }
            return [
                plain | {field.encode_name: value}
                for field in kind.fields
                for value in values(field.type)
            ]
        case inspect.EnumType():
            return [member.value for member in kind.cls] + [*TEXTS, *OTHERS]
    return [*OTHERS]


def ordinary(kind: inspect.Type) -> Any:
    """A value that passes for one of this type."""
    match kind:
        case inspect.StrType():
            return "0" * 24 if kind.pattern and "{24}" in kind.pattern else "/none"
        case inspect.IntType() | inspect.FloatType():
            return 1
        case inspect.ListType():
            return []
        case inspect.EnumType():
            return next(iter(kind.cls)).value
        case inspect.UnionType():
            return ordinary(kind.types[0])
        case inspect.StructType():
            return {f.encode_name: ordinary(f.type) for f in kind.fields if f.required}
    return {}


def requests(*bases: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """A name and a message for each request, field and value, upon each of `bases` that the request
    has the fields of (the empty one among them)."""
    for kind in kinds():
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        fields = {f.encode_name: f for f in info.fields if f.encode_name not in ("id", "v")}
        needed = {name: ordinary(f.type) for name, f in fields.items() if f.required}
        for base in [b for b in ({}, *bases) if b.keys() <= fields.keys()]:
            for name, field in fields.items():
                for value in values(field.type):
                    message = {"op": str(info.tag), "id": 1, **needed, **base, name: value}
                    yield f"{info.tag}.{name}", json.dumps(message).encode()
