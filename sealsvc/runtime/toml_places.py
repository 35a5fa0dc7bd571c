"""Error messages for TOML files, with the line, the key and the possible values."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

_PLACE = re.compile(r" - at `\$\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"""\s*("[^"]*"|'[^']*'|[A-Za-z0-9_-]+)\s*=""")
_INVALID_ENUM = "Invalid enum value"


def line_of(text: str, keys: Sequence[str]) -> int | None:
    """The line number (from 1) of a key; if the key is not there, that of its table. `keys` are the
    names of its tables, then its own. None when neither is found."""
    *tables, last = keys
    table: list[str] = []
    found = None
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            table = [part.strip("\"' ") for part in header[1].split(".")]
            if table == [*keys]:
                found = found or number
        elif table == tables and (key := _KEY.match(line)) and key[1].strip("\"'") == last:
            return number
    return found if found is not None or not tables else line_of(text, tables)


def placed(file: object, text: str, keys: Sequence[str], what: str) -> str:
    """The message `what` about a key, preceded by the file, the line and the key."""
    line = line_of(text, keys) if keys else None
    where = f"{file}:{line}" if line else f"{file}"
    return f"{where}: {'.'.join(keys)}: {what}" if keys else f"{where}: {what}"


def explained(
    error: Exception, file: object, text: str, kind: type, under: Sequence[str] = ()
) -> str:
    """The message of an error that msgspec, or the TOML reader, raised when it decoded a file (its
    table `under`) to the type `kind`: with file, line, key, and the possible values."""
    message = str(error)
    place = _PLACE.search(message)
    message = _PLACE.sub("", message)
    keys = [part for part in re.split(r"[.\[]", place[1]) if part] if place else []
    keys = [key for key in keys if not key.endswith("]")]
    if unknown := _UNKNOWN.search(message):
        names = [field.encode_name for field in msgspec.structs.fields(_at(kind, keys))]
        near = difflib.get_close_matches(unknown[1], names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        return placed(file, text, [*under, *keys, unknown[1]], f"there is no such key; {hint}")
    if message.startswith(_INVALID_ENUM) and (words := _choices(_at(kind, keys))):
        value = message.removeprefix(_INVALID_ENUM).strip()
        message = f"{value} is not one of {', '.join(words)}"
    return placed(file, text, [*under, *keys], message)


def _at(kind: Any, keys: Sequence[str]) -> Any:
    """The type of a key, by its path `keys` from the struct `kind`."""
    for key in keys:
        kind = _bare(kind)
        kind = get_type_hints(kind, include_extras=True).get(key, Any)
    return _bare(kind)


def _bare(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, types.UnionType):
        structs = [arm for arm in get_args(kind) if isinstance(arm, type)]
        return structs[0] if structs else kind
    return _bare(get_args(kind)[0]) if get_origin(kind) is list else kind


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(word) for word in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(member.value) for member in kind]
    return []
