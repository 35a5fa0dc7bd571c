"""Text on the wire and in the journal: every string there is Unicode without NUL.

A file name is any bytes but NUL and "/". Inside the service a byte that is no UTF-8 is a surrogate
(PEP 383, os.fsdecode), which neither JSON nor MessagePack can carry. There byte 0x80+n is the
private character U+10FF80+n instead; a name that has such a character of its own is written byte by
byte. So each name has one spelling on the wire, and a client that sends back what it was told need
know nothing of this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from sealsvc.core.errors import Refusal
from sealsvc.protocol import messages
from sealsvc.protocol.messages import AnyRequest

T = TypeVar("T")
Change = Callable[[Any], Any]

_FIRST = 0x10FF00  # of which the characters from 0x80 on are used
_PRIVATE = re.compile("[\U0010ff80-\U0010ffff]+")
_SURROGATES = re.compile("[\udc80-\udcff]+")
_SPECIAL = re.compile("[\udc80-\udcff\U0010ff80-\U0010ffff]+")
# What such a character looks like: in UTF-8, and escaped in JSON.
_MARKS = (b"\xf4\x8f\xbe", b"\xf4\x8f\xbf", b"\\udbff\\udf", b"\\uDBFF\\uDF", b"\\udbff\\uDF")
_SUSPECT = re.compile(rb"\\u0000|[0-9]{19}|[0-9][eE]")
# Fields that are names of files, wherever they stand. Other text (a message that has a name in it)
# is made fit to be encoded, and stays so.
_NAMES = frozenset({"path", "filesystem", "below", "mount", "source", "device", "roots"})


def _spelled(found: re.Match[str]) -> str:
    return "".join(chr(_FIRST + octet) for octet in os.fsencode(found[0]))


def _meant(found: re.Match[str]) -> str:
    return os.fsdecode(bytes(ord(character) - _FIRST for character in found[0]))


def to_wire(text: str) -> str:
    """Of a name inside the service."""
    return _SPECIAL.sub(_spelled, text)


def from_wire(text: str) -> str:
    """The name as os.fsencode takes it."""
    return _PRIVATE.sub(_meant, text)


def outgoing(message: object) -> bytes:
    """A client's message: what os.fsdecode made of a name becomes what it is on the wire; what the
    service told stays as it is."""
    try:
        return messages.encode(message)
    except UnicodeEncodeError:
        return messages.encode(_each(message, _encodable))


def _encodable(value: Any) -> Any:
    return _SURROGATES.sub(_spelled, value) if isinstance(value, str) else value


def _on_wire(value: Any) -> Any:
    return to_wire(value) if isinstance(value, str) else value


def encoded(message: object, encode: Callable[[Any], bytes] = messages.encode) -> bytes:
    """A message, with names as they are on the wire."""
    try:
        data = encode(message)
        if not any(mark in data for mark in _MARKS[:2]):
            return data
    except UnicodeEncodeError:
        pass
    return encode(_each(message, _encodable, of_names=_on_wire))


def request(data: bytes) -> AnyRequest:
    """Raises msgspec.DecodeError, and Refusal for what no request may have anywhere."""
    found: AnyRequest = messages.decode_request(data)
    if _SUSPECT.search(data):
        _each(found, _checked)
    if any(mark in data for mark in _MARKS):
        found = _each(found, lambda value: value, of_names=_named)
    return found


def decoded(message: T, data: bytes) -> T:
    """What the service encoded before, with names as they are inside it."""
    if not any(mark in data for mark in _MARKS):
        return message
    return _each(message, lambda value: value, of_names=_named)


def _each(value: T, change: Change, of_names: Change | None = None) -> T:
    """A copy with each string and number changed; those in fields of names by `of_names`."""
    found: Any = value
    match value:
        case str() | int() if type(value) in (str, int):
            found = change(value)
        case list() | tuple():
            found = type(value)(_each(item, change, of_names) for item in value)
        case dict():
            found = {
                _each(key, change, of_names): _each(item, change, of_names)
                for key, item in value.items()
            }
        case msgspec.Struct():
            found = msgspec.structs.replace(
                value,
                **{
                    name: _each(
                        getattr(value, name),
                        of_names if of_names and name in _NAMES else change,
                        of_names,
                    )
                    for name in value.__struct_fields__
                },
            )
    return found  # type: ignore[no-any-return]


def _checked(value: Any) -> Any:
    if isinstance(value, str) and "\0" in value:
        raise Refusal("bad-request", "a string has a NUL character, which no name and no text may")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Refusal("bad-request", f"the number {value:.6e} is out of range: 64 bits with a sign")
    return value


def _named(value: Any) -> Any:
    return from_wire(value) if isinstance(value, str) else value
