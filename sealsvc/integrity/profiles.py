"""Profiles of protection information: what a tag holds, described as data.

A profile is written with the keys of the proposal of 2014 (KEYS below). The table FIELDS says what
each field of a tag means and how it may be computed; the parser, the layout that the native engine
is given, the documentation and the tests are all made from it. No I/O but `load`; no native code.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from enum import IntEnum
from importlib.resources import files
from pathlib import Path

NAME_BYTES = 31
MAX_TAG = 128  # bytes
MAX_GRANULARITY = 1 << 24  # bytes
MAX_PROFILES = 60  # of users: all are told in one message


class Meaning(IntEnum):
    """What a field means: enum seal_pi_meaning of native/integrity/pi.h."""

    TAG = 0
    CHECKSUM = 1
    REFTAG = 2
    STORAGE = 3


class Order(IntEnum):
    """enum seal_pi_order."""

    BIG = 0
    LITTLE = 1


class Escape(IntEnum):
    """Which tags are not checked at all: enum seal_pi_escape."""

    NONE = 0
    TAG = 1
    TAG_REFTAG = 2


@dataclass(frozen=True, slots=True)
class Algorithm:
    """`number` is the engine's, `bits` those of the whole checksum (0: as many as the field has).
    A `text` is bytes (a hash): a field may have the first of them. `keyed` needs a key."""

    number: int
    bits: int = 0
    text: bool = False
    keyed: bool = False
    means: str = ""


CHECKSUMS = {
    "crc16-t10dif": Algorithm(1, 16, means="CRC of SBC-4 4.22.4, polynomial 8BB7h"),
    "ip": Algorithm(2, 16, means="Internet checksum of RFC 1071, the guard of DIX"),
    "crc32c": Algorithm(3, 32, means="CRC of RFC 3720, the 32-bit guard of NVMe"),
    "crc64-nvme": Algorithm(4, 64, means="the 64-bit guard of NVMe"),
    "sha1": Algorithm(5, 160, text=True, means="FIPS 180-4; not against an attacker"),
    "sha256": Algorithm(6, 256, text=True, means="FIPS 180-4"),
    "hmac-sha256": Algorithm(7, 256, text=True, keyed=True, means="RFC 2104, with a secret key"),
    "ed25519": Algorithm(
        8, 512, text=True, keyed=True, means="RFC 8032 signature of the SHA-512 of the data"
    ),
}
REFTAGS = {
    "blocknum": Algorithm(1, means="the low bits of the block's number (T10 type 1)"),
    "sequence": Algorithm(2, means="a start value plus the block's index (T10 type 2)"),
    "constant": Algorithm(3, means="one value in each block (T10 type 3)"),
}
ALIASES = {"crc16": "crc16-t10dif", "crc64": "crc64-nvme"}
ESCAPES = {"none": Escape.NONE, "tag": Escape.TAG, "tag,reftag": Escape.TAG_REFTAG}
ORDERS = {"big": Order.BIG, "little": Order.LITTLE}


@dataclass(frozen=True, slots=True)
class FieldKind:
    """A row of the table: the name of a field in the key `profile`, and the keys about it."""

    meaning: Meaning
    algorithms: Mapping[str, Algorithm] | None
    means: str


FIELDS = {
    "tag": FieldKind(Meaning.TAG, None, "application tag: opaque, the application's"),
    "checksum": FieldKind(Meaning.CHECKSUM, CHECKSUMS, "of the block's data (T10: guard)"),
    "reftag": FieldKind(Meaning.REFTAG, REFTAGS, "where the block belongs (T10: reference tag)"),
    "storage": FieldKind(Meaning.STORAGE, None, "storage tag of NVMe: opaque, the application's"),
}

KEYS = {
    "name": f"1 to {NAME_BYTES} letters, digits, '.', '_' and '-'",
    "granularity": f"bytes of data for each tag: 0 (a byte stream) or 8 to {MAX_GRANULARITY}",
    "alignment": f"bytes that the data's offset is a multiple of: 0 (any) to {MAX_GRANULARITY}",
    "profile": f"the fields in order, each once, with commas between: {', '.join(FIELDS)}",
    "tag-width": "u1 to u64 (bits)",
    "checksum-alg": ", ".join(CHECKSUMS),
    "checksum-width": "the algorithm's, in bits (u16) or bytes (u8[32]); of a hash the first bytes",
    "reftag-alg": ", ".join(REFTAGS),
    "reftag-width": "u1 to u64 (bits)",
    "storage-width": "u1 to u64 (bits)",
    "byte-order": f"{', '.join(ORDERS)} (default: big); of fields that are whole bytes",
    "escape": f"which tag of all ones is not checked: {', '.join(ESCAPES)} (default: none)",
}
_REQUIRED = ("name", "granularity", "alignment", "profile")


class ProfileError(ValueError):
    """A description that is no profile: names the source, the key and what is allowed."""

    def __init__(self, source: str, key: str, found: str) -> None:
        allowed = KEYS.get(key, f"the keys are {', '.join(KEYS)}")
        super().__init__(f"{source}: {key}: {found}; allowed: {allowed}")
        self.source, self.key = source, key


@dataclass(frozen=True, slots=True)
class Field:
    """`offset` and `width` in bits, from the most significant bit of the tag's first byte."""

    name: str
    meaning: Meaning
    offset: int
    width: int
    order: Order


@dataclass(frozen=True, slots=True)
class Profile:
    """`granularity` and `alignment` in bytes; `checksum` and `reftag` name algorithms ("": no such
    field). `source` is the file that it was read from."""

    name: str
    granularity: int
    alignment: int
    fields: tuple[Field, ...]
    checksum: str
    reftag: str
    escape: Escape
    source: str = attribute(compare=False)

    @property
    def width(self) -> int:
        """Bytes of a tag."""
        return sum(field.width for field in self.fields) // 8

    @property
    def keyed(self) -> bool:
        return bool(self.checksum) and CHECKSUMS[self.checksum].keyed

    @property
    def mask(self) -> int:
        """All of its fields, as a mask of 1 << Meaning."""
        return sum(1 << field.meaning for field in self.fields)

    def mask_of(self, names: Iterable[str]) -> int:
        """Raises ValueError for a field that it does not have."""
        have = {field.name: 1 << field.meaning for field in self.fields}
        mask = 0
        for name in names:
            if name not in have:
                raise ValueError(f"{self.name} has no field {name!r}, only {', '.join(have)}")
            mask |= have[name]
        return mask

    def described(self) -> dict[str, int | str]:
        """The keys that make this profile again."""
        said: dict[str, int | str] = {
            "name": self.name,
            "granularity": self.granularity,
            "alignment": self.alignment,
            "profile": ",".join(field.name for field in self.fields),
        }
        for field in self.fields:
            text = field.name == "checksum" and CHECKSUMS[self.checksum].text
            said[f"{field.name}-width"] = f"u8[{field.width // 8}]" if text else f"u{field.width}"
        if self.checksum:
            said["checksum-alg"] = self.checksum
        if self.reftag:
            said["reftag-alg"] = self.reftag
        if any(field.order is Order.LITTLE for field in self.fields):
            said["byte-order"] = "little"
        if self.escape:
            said["escape"] = next(n for n, escape in ESCAPES.items() if escape is self.escape)
        return {key: said[key] for key in KEYS if key in said}


# -- from keys to a profile


def parse(keys: Mapping[str, object], source: str) -> Profile:
    """Raises ProfileError."""
    for key in keys:
        if key not in KEYS:
            raise ProfileError(source, str(key), "no such key")
    for key in _REQUIRED:
        if key not in keys:
            raise ProfileError(source, key, "missing")
    name = keys["name"]
    if not isinstance(name, str) or not re.fullmatch(rf"[\w.-]{{1,{NAME_BYTES}}}", name, re.ASCII):
        raise ProfileError(source, "name", repr(name))
    source = f"{source}: {name}"
    granularity = _number(keys, "granularity", source)
    if 0 < granularity < 8:
        raise ProfileError(source, "granularity", str(granularity))
    order = ORDERS[_choice(keys, "byte-order", ORDERS, source, "big")]
    names = _field_names(keys, source)
    checksum, reftag = (_algorithm(keys, field, names, source) for field in ("checksum", "reftag"))
    profile = Profile(
        name=name,
        granularity=granularity,
        alignment=_number(keys, "alignment", source),
        fields=tuple(_laid_out(keys, names, checksum, order, source)),
        checksum=checksum,
        reftag=reftag,
        escape=ESCAPES[_choice(keys, "escape", ESCAPES, source, "none")],
        source=source,
    )
    if profile.escape and not {"tag", *(["reftag"] if profile.escape > 1 else [])} <= set(names):
        raise ProfileError(source, "escape", f"the profile has only {', '.join(names)}")
    return profile


def _number(keys: Mapping[str, object], key: str, source: str) -> int:
    value = keys[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_GRANULARITY:
        raise ProfileError(source, key, repr(value))
    return value


def _choice(
    keys: Mapping[str, object], key: str, allowed: Mapping[str, object], source: str, default: str
) -> str:
    value = keys.get(key, default)
    if isinstance(value, str):
        value = ALIASES.get(value, value).replace(" ", "")
    if not isinstance(value, str) or value not in allowed:
        raise ProfileError(source, key, repr(keys[key]) if key in keys else "missing")
    return value


def _field_names(keys: Mapping[str, object], source: str) -> list[str]:
    value = keys["profile"]
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else []
    if not names or len(set(names)) != len(names) or not set(names) <= set(FIELDS):
        raise ProfileError(source, "profile", repr(value))
    for name in FIELDS.keys() - set(names):
        for key in (f"{name}-width", f"{name}-alg"):
            if key in keys:
                raise ProfileError(source, key, f"`profile` has no {name}")
    return names


def _algorithm(keys: Mapping[str, object], field: str, names: list[str], source: str) -> str:
    algorithms = FIELDS[field].algorithms
    if field not in names or algorithms is None:
        return ""
    return _choice(keys, f"{field}-alg", algorithms, source, "")


def _laid_out(
    keys: Mapping[str, object], names: list[str], checksum: str, order: Order, source: str
) -> Iterator[Field]:
    offset = 0
    for name in names:
        width = _width(keys, name, checksum, source)
        whole = offset % 8 == 0 and width % 8 == 0
        if name == "checksum" and not whole:
            raise ProfileError(source, "checksum-width", "it does not lie on whole bytes")
        text = name == "checksum" and CHECKSUMS[checksum].text
        yield Field(
            name, FIELDS[name].meaning, offset, width, order if whole and not text else Order.BIG
        )
        offset += width
    if offset % 8 or offset > MAX_TAG * 8:
        found = f"{offset} bits in all: not whole bytes, or more than {MAX_TAG}"
        raise ProfileError(source, f"{names[-1]}-width", found)


def _width(keys: Mapping[str, object], name: str, checksum: str, source: str) -> int:
    """In bits."""
    key = f"{name}-width"
    value = keys.get(key)
    found = re.fullmatch(r"u8\[(\d{1,3})\]|u(\d{1,3})", value) if isinstance(value, str) else None
    if found is None:
        raise ProfileError(source, key, repr(value) if key in keys else "missing")
    width = int(found[1]) * 8 if found[1] else int(found[2])
    most = 64
    if name == "checksum":
        algorithm = CHECKSUMS[checksum]
        most = algorithm.bits
        if width != most and (not algorithm.text or checksum == "ed25519"):
            raise ProfileError(source, key, f"{value}, but {checksum} has {most} bits")
    if not 1 <= width <= most:
        raise ProfileError(source, key, repr(value))
    return width


# -- from text to keys

_TOKEN = re.compile(
    r"""\s+|\#[^\n]*|(?P<mark>[{}:,])|"(?P<text>[^"\n]*)"|(?P<word>[\w.-]+(?:\[\d+\])?)""",
    re.ASCII,
)


def _tokens(text: str, source: str) -> Iterator[tuple[str, str, int]]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        line = text.count("\n", 0, at) + 1
        if found is None:
            raise ProfileError(f"{source}:{line}", "syntax", f"unexpected {text[at]!r}")
        if found.lastgroup:
            yield found.lastgroup, found[found.lastgroup], line
        at = found.end()


def read_notation(text: str, source: str) -> Iterator[dict[str, object]]:
    """The notation of the proposal: `{ key: value, ... }`, values bare or in quotes; `or` may stand
    between two. Raises ProfileError."""
    tokens = _tokens(text, source)

    def expect(kinds: str) -> tuple[str, str, int]:
        token = next(tokens, ("end", "the end", text.count("\n") + 1))
        if token[0] not in kinds and (token[0] != "mark" or token[1] not in kinds):
            raise ProfileError(
                f"{source}:{token[2]}", "syntax", f"found {token[1]!r}, expected {kinds}"
            )
        return token

    for kind, value, line in tokens:
        if kind == "word" and value == "or":
            continue
        if (kind, value) != ("mark", "{"):
            raise ProfileError(f"{source}:{line}", "syntax", f"found {value!r}, expected {{")
        keys: dict[str, object] = {}
        while True:
            kind, key, line = expect("word }")
            if kind == "mark":
                break
            if key in keys:
                raise ProfileError(f"{source}:{line}", key, "given twice")
            expect(":")
            kind, value, _ = expect("word text")
            keys[key] = int(value) if kind == "word" and value.isdecimal() else value
            if expect(", }")[1] == "}":
                break
        yield keys


def _described_in(path: Path) -> Iterator[Mapping[str, object]]:
    """The descriptions of one file: one profile, or several under the key `profiles`."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".pi":
        yield from read_notation(text, str(path))
        return
    content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    rows = content.get("profiles", [content]) if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProfileError(str(path), "profiles", "neither a profile nor a list of profiles")
    yield from rows


def built_in() -> dict[str, Profile]:
    text = files(__package__).joinpath("builtin.pi").read_text(encoding="utf-8")
    profiles = (parse(keys, "built in") for keys in read_notation(text, "built in"))
    return {profile.name: profile for profile in profiles}


def load(directory: Path | None) -> tuple[dict[str, Profile], list[ProfileError]]:
    """The built-in profiles and those of the directory's files (*.toml, *.json, *.pi), by name. A
    file that is wrong adds none of its profiles, and an error."""
    profiles, errors = built_in(), list[ProfileError]()
    room = len(profiles) + MAX_PROFILES
    found = sorted(directory.iterdir()) if directory is not None and directory.is_dir() else []
    for path in found:
        if path.suffix not in (".toml", ".json", ".pi"):
            continue
        try:
            mine = [parse(keys, str(path)) for keys in _described_in(path)]
            taken = {profile.name for profile in mine} & profiles.keys()
            if taken or len({profile.name for profile in mine}) != len(mine):
                names = ", ".join(sorted(taken)) or "one of its own"
                raise ProfileError(str(path), "name", f"taken already: {names}")
            if len(profiles) + len(mine) > room:
                raise ProfileError(str(path), "profiles", f"more than {MAX_PROFILES} in all")
            profiles |= {profile.name: profile for profile in mine}
        except ProfileError as error:
            errors.append(error)
        except (OSError, ValueError) as error:  # unreadable, or neither TOML nor JSON
            errors.append(ProfileError(str(path), "syntax", str(error)))
    return profiles, errors
