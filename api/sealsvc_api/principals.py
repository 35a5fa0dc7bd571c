"""The principals file: who is known, by which proofs, with which role and scopes.

    [principal.alice]
    role = "operator"
    scopes = ["/srv/pmem"]
    tokens = ["sha256:..."]

Everything that is not listed is nobody. The file is looked at again when it has changed, so that
tokens are rotated without a restart; a file that has become unreadable leaves nobody known.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import posixpath
import re
import stat
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from sealsvc.runtime.toml_places import explained
from sealsvc_api.access import Caller, Role
from sealsvc_api.settings import SettingsError

log = logging.getLogger("sealsvc.api")

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_LOOK = 0.25  # seconds between two looks at the file
TOKEN_BYTES = 32


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`holders` are user ids whose processes it may name as holders of seals, or ["*"]."""

    role: Role
    scopes: list[str] = []
    tokens: list[str] = []
    certificates: list[str] = []
    users: list[int] = []
    groups: list[int] = []
    holders: list[int | str] = msgspec.field(default_factory=list)
    requests_per_second: Annotated[float, Meta(gt=0)] = 100.0


class PrincipalsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    principal: dict[Annotated[str, Meta(pattern=r"^[A-Za-z0-9._@-]{1,64}$")], Entry] = {}


def digest(token: str) -> bytes:
    """Tokens are 256 random bits, so that one round of a hash is enough to keep them at rest."""
    return hashlib.sha256(token.encode()).digest()


class Known:
    """The principals of one reading of the file."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._callers = {name: _caller(name, entry) for name, entry in entries.items()}
        self._tokens = [
            (bytes.fromhex(_hex(name, token)), name)
            for name, entry in entries.items()
            for token in entry.tokens
        ]
        self._entries = entries

    def by_token(self, token: str) -> Caller | None:
        return self._by_digest(digest(token), "token")

    def by_proof(self, proof: bytes) -> Caller | None:
        """Of a session that a token began: as long as that token is in force."""
        return self._by_digest(proof, "session")

    def _by_digest(self, presented: bytes, how: str) -> Caller | None:
        # All are compared, whichever matches: the time tells nothing.
        found = [name for known, name in self._tokens if hmac.compare_digest(presented, known)]
        return self._as(found[0], how, presented) if found else None

    def by_certificate(self, names: frozenset[str]) -> Caller | None:
        return self._first(lambda entry: not names.isdisjoint(entry.certificates), "certificate")

    def by_peer(self, uid: int, gids: frozenset[int]) -> Caller | None:
        return self._first(lambda entry: uid in entry.users, "peer") or self._first(
            lambda entry: not gids.isdisjoint(entry.groups), "peer"
        )

    def _first(self, matches: Callable[[Entry], bool], how: str) -> Caller | None:
        for name, entry in self._entries.items():
            if matches(entry):
                return self._as(name, how)
        return None

    def _as(self, name: str, how: str, proof: bytes = b"") -> Caller:
        bare = self._callers[name]
        return Caller(
            bare.name, bare.role, bare.below, bare.holders, bare.rate, how=how, proof=proof
        )

    def __iter__(self) -> Iterator[Caller]:
        return iter(self._callers.values())


def _caller(name: str, entry: Entry) -> Caller:
    for scope in entry.scopes:
        if not scope.startswith("/") or posixpath.normpath(scope) != scope:
            raise SettingsError(f"principal {name}: scope {scope!r} is not a plain absolute path")
    below = None if "/" in entry.scopes else tuple(entry.scopes)
    anybody = "*" in entry.holders
    numbers = tuple(uid for uid in entry.holders if isinstance(uid, int))
    if not anybody and len(numbers) != len(entry.holders):
        raise SettingsError(f'principal {name}: holders are user ids, or ["*"]')
    holders = None if anybody else numbers
    return Caller(name, entry.role, below, holders, entry.requests_per_second, how="")


def _hex(name: str, token: str) -> str:
    """SettingsError never quotes a token: one pasted in the clear must not end up in a log."""
    match = _DIGEST.fullmatch(token)
    if match is None:
        raise SettingsError(
            f"principal {name}: a token is not sha256: and 64 lower-case hex digits"
        )
    return match[1]


def _refuse_bad_entries(path: Path, text: str, entries: object) -> None:
    """One by one, so that the error can name the principal."""
    if not isinstance(entries, dict):
        return  # told of with the whole
    for name, entry in entries.items():
        try:
            msgspec.convert(entry, Entry)
        except msgspec.ValidationError as error:
            told = explained(error, path, text, Entry, ("principal", name))
            raise SettingsError(told) from None


def read(path: Path) -> Known:
    """Raises SettingsError."""
    try:
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise SettingsError(f"{path}: others than its owner may write to it (chmod go-w)")
        text = path.read_text("utf-8")
        table = tomllib.loads(text)
        _refuse_bad_entries(path, text, table.get("principal", {}))
        return Known(msgspec.convert(table, PrincipalsFile).principal)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: {error}") from None
    except msgspec.ValidationError as error:
        raise SettingsError(explained(error, path, text, PrincipalsFile)) from None
    except SettingsError as error:
        raise SettingsError(
            f"{path}: {error}" if str(path) not in str(error) else str(error)
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from None


class Principals:
    """The file as it stands. `path` None: nobody is known."""

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._stamp = _stamp(path)
        self._looked = clock()
        self._known = read(path) if path else Known({})

    @property
    def known(self) -> Known:
        now = self._clock()
        if self._path is not None and now >= self._looked + _LOOK:
            self._looked = now
            self._look(self._path)
        return self._known

    def _look(self, path: Path) -> None:
        stamp = _stamp(path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = read(path)
            log.info("the principals were read again")
        except SettingsError as error:
            # Closed rather than stale: a token that was just taken out must not live on.
            self._known = Known({})
            log.error("nobody is known until this is put right: %s", error)


def _stamp(path: Path | None) -> tuple[int, int, int, int] | None:
    if path is None:
        return None
    try:
        st = path.stat()
    except OSError:
        return (0, 0, 0, 0)
    return (st.st_ino, st.st_mtime_ns, st.st_size, st.st_mode)
